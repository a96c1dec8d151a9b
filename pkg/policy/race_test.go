//go:build race

package policy

// raceDetector says that times mean nothing in this build.
const raceDetector = true
