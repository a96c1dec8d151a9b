// Package bridge makes guests out of other people's containers: it runs any engine's
// command whose stdin and stdout are the channel of a guest image, and stands between
// that command and the guest's client. It is what `psi-shim bridge` does.
//
//	client ◄── control socket ──► bridge ──starts──► podman run -i … ──► conmon ─► guest
//	   │                            │                  │ stdin, stdout
//	   └────────── channel (SCM_RIGHTS) ───────────────┘
//	                                └── keeper: ends the containers when the bridge dies
//
// With a control socket ([Serve]) it speaks the protocol of package control, as a
// supervisor does, and each spawn runs the command once. Without one ([Relay]) it runs the
// command once and carries its frames between its own stdin and stdout.
//
// Podman and Docker are known: what they run is found by its container id, signalled by
// pidfd, measured by its cgroup, and removed by the engine when nobody wants it any more.
// Podman is also given the policy: as flags for what podman can hold, and as the annotation
// that psi-runtime enforces. What neither holds is an error before anything runs. Of any
// other command (kubectl attach -i …) nothing is known but its stdio and its end: it is
// given no policy, and its guest has no figures.
//
// This package does not decide what a guest may do and does not enforce it: that is done
// by psi-runtime inside the engine (cmd/psi-runtime), or by whoever made the container.
package bridge
