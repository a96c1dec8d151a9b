package enforce

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// putTable makes a table an inner map of the outer map of its size. A table that is
// there already is the same one: its digest is its key.
func putTable(outer *ebpf.Map, t pathTable) error {
	inner, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "path_table", Type: ebpf.Array, KeySize: 4, ValueSize: uint32(len(t.data)), MaxEntries: 1,
	})
	if err != nil {
		return fmt.Errorf("making a table of %d KiB for the file rules: %w", len(t.data)>>10, explain(err))
	}
	defer inner.Close()
	if err := inner.Put(uint32(0), t.data); err != nil {
		return fmt.Errorf("writing the table of the file rules: %w", err)
	}
	if err := outer.Update(t.id, inner, ebpf.UpdateNoExist); err != nil && !errors.Is(err, unix.EEXIST) && !errors.Is(err, ebpf.ErrKeyExist) {
		return fmt.Errorf("adding the table of the file rules: %w", full(err, outer, "different sets of file rules"))
	}
	return nil
}
