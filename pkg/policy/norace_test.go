//go:build !race

package policy

// raceDetector says that times mean nothing in a build with the detector.
const raceDetector = false
