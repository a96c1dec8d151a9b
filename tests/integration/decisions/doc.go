// Package decisions asks real guests what they can do with files, one question for each row of
// testdata/cases.yml, and compares the answers with the table: one column for a host whose kernel
// decides about each path (BPF-LSM), one for a host where a guest's mounts do.
//
// The two columns must make the same decision. Where they do not the row says why, and where they
// make it by another error it shows.
package decisions
