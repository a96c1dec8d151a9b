package confine

import (
	"errors"
	"fmt"
	"io"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	libseccomp "github.com/seccomp/libseccomp-golang"
	"golang.org/x/sys/unix"
)

// Compile makes the program that the kernel runs of a filter, which takes
// milliseconds for a long one ([Program] knows some). Only what psi's own filters are made of is understood:
// allowed calls and errors.
func Compile(s *specs.LinuxSeccomp) ([]byte, error) {
	program, err := compileLong(s)
	if err != nil {
		return nil, fmt.Errorf("compiling a seccomp filter: %w", err)
	}
	return compact(program), nil
}

// compileLong is Compile by libseccomp alone.
func compileLong(s *specs.LinuxSeccomp) ([]byte, error) {
	fallback, err := action(s.DefaultAction, s.DefaultErrnoRet)
	if err != nil {
		return nil, err
	}
	filter, err := libseccomp.NewFilter(fallback)
	if err != nil {
		return nil, err
	}
	defer filter.Release()
	for _, name := range s.Architectures {
		arch, err := architecture(name)
		if err != nil {
			return nil, err
		}
		if err := filter.AddArch(arch); err != nil {
			return nil, err
		}
	}
	for _, rule := range s.Syscalls {
		if err := add(filter, rule, fallback); err != nil {
			return nil, fmt.Errorf("rule for %v: %w", rule.Names, err)
		}
	}
	return export(filter)
}

func add(filter *libseccomp.ScmpFilter, rule specs.LinuxSyscall, fallback libseccomp.ScmpAction) error {
	act, err := action(rule.Action, rule.ErrnoRet)
	if err != nil || act == fallback {
		return err // a rule that says what happens anyway is one that libseccomp refuses
	}
	var conditions []libseccomp.ScmpCondition
	for _, arg := range rule.Args {
		op, ok := operators()[arg.Op]
		if !ok {
			return fmt.Errorf("unknown comparison %q", arg.Op)
		}
		values := []uint64{arg.Value}
		if op == libseccomp.CompareMaskedEqual {
			values = append(values, arg.ValueTwo)
		}
		c, err := libseccomp.MakeCondition(arg.Index, op, values...)
		if err != nil {
			return err
		}
		conditions = append(conditions, c)
	}
	for _, name := range rule.Names {
		call, err := libseccomp.GetSyscallFromName(name)
		if err != nil {
			continue // of another architecture, or newer than the library
		}
		if len(conditions) == 0 {
			err = filter.AddRule(call, act)
		} else {
			err = filter.AddRuleConditional(call, act, conditions)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func operators() map[specs.LinuxSeccompOperator]libseccomp.ScmpCompareOp {
	return map[specs.LinuxSeccompOperator]libseccomp.ScmpCompareOp{
		specs.OpNotEqual: libseccomp.CompareNotEqual, specs.OpLessThan: libseccomp.CompareLess,
		specs.OpLessEqual: libseccomp.CompareLessOrEqual, specs.OpEqualTo: libseccomp.CompareEqual,
		specs.OpGreaterEqual: libseccomp.CompareGreaterEqual, specs.OpGreaterThan: libseccomp.CompareGreater,
		specs.OpMaskedEqual: libseccomp.CompareMaskedEqual,
	}
}

func action(a specs.LinuxSeccompAction, errno *uint) (libseccomp.ScmpAction, error) {
	switch a {
	case specs.ActAllow:
		return libseccomp.ActAllow, nil
	case specs.ActErrno:
		number := uint(unix.EPERM)
		if errno != nil {
			number = *errno
		}
		return libseccomp.ActErrno.SetReturnCode(int16(number)), nil
	}
	return libseccomp.ActInvalid, fmt.Errorf("action %q is none of psi's filters", a)
}

func architecture(a specs.Arch) (libseccomp.ScmpArch, error) {
	switch a {
	case specs.ArchX86_64:
		return libseccomp.ArchAMD64, nil
	case specs.ArchAARCH64:
		return libseccomp.ArchARM64, nil
	}
	return libseccomp.ArchInvalid, fmt.Errorf("architecture %q is none of psi's filters", a)
}

// export reads the program out of libseccomp, which writes it to a descriptor.
func export(filter *libseccomp.ScmpFilter) (program []byte, err error) {
	fd, err := unix.MemfdCreate("filter", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "filter")
	defer f.Close()
	if err := filter.ExportBPF(f); err != nil {
		return nil, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	program, err = io.ReadAll(f)
	if err == nil && len(program) == 0 {
		err = errors.New("libseccomp wrote no program")
	}
	return program, err
}

// TakesArch reports whether a filter of this machine can be of an architecture, by libseccomp's name of it.
func TakesArch(name string) bool {
	arch, err := libseccomp.GetArchFromString(name)
	if err != nil {
		return false
	}
	filter, err := libseccomp.NewFilter(libseccomp.ActAllow)
	if err != nil {
		return false
	}
	defer filter.Release()
	return filter.AddArch(arch) == nil
}
