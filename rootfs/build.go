package rootfs

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
)

// Options say what to build and where to put it. Only Output is required.
type Options struct {
	// Python is the interpreter to pack, "" for /usr/bin/python3. It may be a
	// symlink, a wrapper or the python of a virtual environment; the CPython
	// behind it is what goes into the root.
	Python string
	// SitePackages are directories of importable packages, copied as a whole
	// with the libraries that their extension modules need. Where two of
	// them hold the same top-level name, the earlier one wins, as on
	// sys.path. The root of a virtual environment is accepted as well.
	SitePackages []string
	// Output is the path to create. An existing psi root (or image) there is
	// replaced in one step; anything else that is not empty is refused.
	Output string
	// Format is "dir" (default), "tar" (a plain archive of the root) or
	// "oci" (an OCI image: a layout directory, or an oci-archive when Output
	// ends in ".tar").
	Format string
	// Progress, if not nil, is told each step in a short English line. It is
	// called from the goroutine that called Build.
	Progress func(string)
}

// Report describes a finished root.
type Report struct {
	// Path is the absolute path of the output.
	Path string `json:"path"`
	// Digest is "sha256:<hex>" over the sorted entries of the root; it does
	// not depend on the format.
	Digest string `json:"digest"`
	// Python is the version packed, "3.11".
	Python string `json:"python"`
	// Size is the sum of all file sizes in bytes.
	Size int64 `json:"size"`
	// Files is the number of regular files.
	Files int `json:"files"`
	// LeftOut names what the host has and the root has not, and what in the
	// root cannot work, each as "name: reason", sorted.
	LeftOut []string `json:"left_out"`
}

// builder carries one build from step to step.
type builder struct {
	options Options
	python  interpreter
	tree    *tree
	work    string // scratch directory beside the output, removed at the end
	leftOut []string
	needs   map[string][]string // ELF file → shared libraries, both as paths in the root
}

// Build makes a root filesystem. On any error, and when ctx ends, the output
// is as it was before.
func Build(ctx context.Context, o Options) (Report, error) {
	o, err := o.completed()
	if err != nil {
		return Report{}, err
	}
	python, err := askInterpreter(ctx, o.Python)
	if err != nil {
		return Report{}, err
	}
	out, err := openOutput(o.Output, o.Format)
	if err != nil {
		return Report{}, err
	}
	defer out.discard()

	b := &builder{options: o, python: python, tree: newTree(), work: out.work, needs: map[string][]string{}}
	for _, step := range []struct {
		say string
		do  func(context.Context) error
	}{
		{"packing " + python.Executable, b.addInterpreter},
		{"collecting the standard library", b.addStdlib},
		{"collecting site packages", b.addSitePackages},
		{"adding the agent", b.addAgent},
		{"adding system files", b.addSystemFiles},
		{"following shared libraries", b.addLibraries},
		{"compiling to bytecode", b.addBytecode},
		{"reading what modules import", b.addGraph},
	} {
		if err := ctx.Err(); err != nil {
			return Report{}, fmt.Errorf("building root filesystem: %w", err)
		}
		o.Progress(step.say)
		if err := step.do(ctx); err != nil {
			return Report{}, err
		}
	}
	report, err := b.seal(ctx)
	if err != nil {
		return Report{}, err
	}
	o.Progress("writing " + o.Output)
	if err := out.write(ctx, b.tree, b.python, report); err != nil {
		return Report{}, err
	}
	return report, nil
}

// completed returns the options with defaults filled in and paths made
// absolute.
func (o Options) completed() (Options, error) {
	if o.Output == "" {
		return o, errors.New("building root filesystem: no output path given: say where to put it with -o DIR")
	}
	if o.Python == "" {
		o.Python = "/usr/bin/python3"
	}
	if o.Format == "" {
		o.Format = formatDir
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	switch o.Format {
	case formatDir, formatTar, formatOCI:
	default:
		return o, fmt.Errorf("building root filesystem: unknown format %q: use dir, tar or oci", o.Format)
	}
	path, err := filepath.Abs(o.Output)
	if err != nil {
		return o, fmt.Errorf("resolving output %q: %w", o.Output, err)
	}
	o.Output = path
	return o, nil
}
