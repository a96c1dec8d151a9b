// Package decisions asks real guests what they can do: with files, one question for each row of
// testdata/cases.yml, with sockets, one for each row of its network section, and with modules, one for
// each row of its imports. It compares the answers with the table: one column for a host whose kernel
// decides about each path (BPF-LSM), one for a host where a guest's mounts do.
//
// The two columns must make the same decision. Where they do not the row says why, and where they
// make it by another error it shows. A row also says who refuses, and that is compared with who was
// seen to.
//
// The same questions are asked of a guest of a supervisor and of a bundle that psi-runtime runs, made
// of the same policy. What a bundle answers follows from the two columns, or the row says it and why.
// What a run found is in build/reports, where tests/vm also puts what the second kernel's did.
package decisions
