// Package policy is the language in which one says what a guest may do: how
// much memory, processor and time it gets, which host files and which network
// endpoints it sees, and which Python modules it may import.
//
// A [Policy] is an immutable value. It comes from a document ([Parse], for YAML
// and JSON alike), from a file or a name ([Load]), from a built-in ([Named]) or
// from [Defaults]; its modifiers return changed copies, so that one policy can
// be shared by any number of goroutines and guests:
//
//	p, err := policy.Defaults().AllowFS("/srv/data/*.parquet", policy.Read)
//	p, err = p.AllowTCP("127.0.0.1:9200")
//
// Every policy has one canonical document ([Policy.Canonical]) and a digest of
// it. Two policies with the same digest permit the same things, whatever file,
// language or order of calls they were written in, and the canonical document
// parses back to an equal policy. That is what travels to a supervisor and in
// the annotation io.psi.policy of a bundle.
//
// A document holds one policy, or several sandboxes that extend each other
// ([ReadDocument], [Document.Resolve]); [CheckAll] finds every error of one,
// [Format] writes it in the usual form, [Compare] says what one policy permits
// and another does not. [CompileGlobs] turns file rules into an [Automaton].
//
// What is not allowed is denied: a policy starts with no host file and no
// endpoint, and rules only open. A deny rule takes away again, whatever the
// order of the rules. A document that is not understood to the last key is
// refused, with the position, the value, the rule that it breaks and the way
// out in an [*Error].
//
// This package decides nothing at run time and touches no kernel: pkg/bundle
// turns a policy into an OCI bundle, internal/enforce and internal/netproxy hold
// it. The functions that open files are [Load], [Lookup] and [Open]. [Match] is
// the reference meaning of a pattern, and [DecideFS] that of a list of rules;
// every faster matcher is tested against them.
package policy
