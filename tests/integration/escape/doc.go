// Package escape holds the attempts to get out of a guest: scripts that try everything an attacker with
// native code would, and the tests that run them.
//
// A test that cannot fail proves nothing, so every family of attempts runs twice:
//
//	confined   the script is the entry of a bundle under a policy; each of its lines must say `held`, and
//	           nothing may have changed on the host
//	control    the same script with the confinement taken out of config.json; each of its attempts must say
//	           `ESCAPED`, but those that hold everywhere, or whose call this kernel does not have
//
// The scripts are in testdata/attempts; each begins with what it tries and what must hold. testdata/lib.py, put in
// front of each, says what their lines mean. A new attempt is a few lines in one of them.
//
// Attacks on the programs instead of the kernel have tests of their own: hostile bundles (bundles_test.go), the
// runtime's own binary (overwrite_test.go), floods (resources_test.go), the channel, the client and the
// supervisor (channel_test.go).
package escape
