// Package bundle turns a policy into an OCI bundle: a directory with config.json,
// a root filesystem, and nothing else that a runtime needs to know.
//
// The way from one to the other is four steps, each usable alone:
//
//	info, err := bundle.Inspect("/var/lib/psi/rootfs")   // what root is this?
//	view, err := bundle.PlanView(p)                       // which host files does p show now?
//	spec, err := bundle.Compile(p, info, view, entry)     // pure: same input, same bytes
//	err = bundle.Write(dir, spec, info, view, entry)      // config.json, rootfs/, entry.py
//
// Only [PlanView] looks at the host's files and only [Write] makes any; what a
// guest is held by is decided in [Compile], and can be read, compared and tested
// without a kernel. The canonical policy travels in the annotation [PolicyKey],
// so that a bundle needs nothing beside it to be enforced.
//
// The result is a bundle like any other: plain runc runs it. What only psi's own
// runtime does with it is listed at [Compile].
//
// A supervisor that starts guests of its own does not need [Write]: it shares one
// root between them. Use this package wherever a policy has to become something
// that a container runtime understands; do not use it to run the result
// (internal/container) or to enforce the rules that no OCI field expresses
// (internal/enforce, internal/netproxy).
package bundle
