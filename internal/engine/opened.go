package engine

import (
	"strings"

	"github.com/psi-runtime/psi/pkg/policy"
)

// Access is what somebody has a file open for.
type Access struct{ Read, Write bool }

// TakesAway reports whether a process that has a file of the container open, as the
// container was held by r, has what next no longer permits. LSM programs are asked when a
// file is opened, received or mapped, and not again.
func (r *Record) TakesAway(next *Record, path string, has Access) bool {
	// It may have been deleted, and a file that has not may be called so.
	for _, name := range []string{path, strings.TrimSuffix(path, " (deleted)")} {
		if before, after := r.permits(name), next.permits(name); has.Read && before.Read && !after.Read || has.Write && before.Write && !after.Write {
			return true
		}
	}
	return false
}

func (r *Record) permits(path string) Access {
	access := policy.DecideGuest(r.OwnFiles(r.Policy), r.Policy.FS(), r.Places(r.Policy), path)
	own := access&policy.Own != 0
	return Access{own || access&(policy.MayRead|policy.MayExecute) != 0, own || access&policy.MayWrite != 0}
}
