package enforce

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// An end of a pair of AF_UNIX datagram sockets can send to any socket that has a name, and
// connect to it. Since Linux 6.7 a cgroup's programs are asked each time that somebody gives
// a name, by a socket that was made in the cgroup: these refuse, whatever the name. What an
// end sends to its other end needs none.

// loadPairs loads those programs. They are asked nothing but whether, and have no table.
func loadPairs() ([]hook, error) {
	var hooks []hook
	for _, attach := range []ebpf.AttachType{ebpf.AttachCgroupUnixConnect, ebpf.AttachCgroupUnixSendmsg} {
		program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Name: "psi_unix", Type: ebpf.CGroupSockAddr, AttachType: attach, License: "GPL",
			Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
		})
		if err != nil {
			return nil, errors.Join(fmt.Errorf("loading the program for %s: %w", attach, explain(err)), closeHooks(hooks))
		}
		h := hook{program: program, attach: attach}
		if h.id, err = programID(program); err != nil {
			return nil, errors.Join(err, program.Close(), closeHooks(hooks))
		}
		hooks = append(hooks, h)
	}
	return hooks, nil
}

func closeHooks(hooks []hook) error {
	var errs []error
	for _, h := range hooks {
		errs = append(errs, h.program.Close())
	}
	return errors.Join(errs...)
}

// HoldsPairs reports whether HoldPairs can do it on this kernel.
func (p *Programs) HoldsPairs() bool {
	p.loadPairs.Do(func() { p.pairs, _ = loadPairs() }) // who runs one container does without
	return len(p.pairs) > 0
}

// HoldPairs has every AF_UNIX socket that is made in the cgroup2 directory, from now on,
// reach nobody by a name, for as long as the cgroup exists. It is for guests that can make
// no such socket but pairs: others would lose their own.
func (p *Programs) HoldPairs(cgroupDir string) error {
	if !p.HoldsPairs() {
		return &NotSupportedError{"a hook for unix sockets", "run Linux 6.7 or newer", nil}
	}
	dir, _, err := openCgroup2(cgroupDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	return attachAll(dir, p.pairs)
}
