package engine

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"golang.org/x/sys/unix"
)

// ConfigFile is where the administrator of a machine says which policies hold.
const ConfigFile = "/etc/psi/runtime.toml"

// Annotations that count unless the configuration says otherwise.
const (
	PolicyKey = "io.psi.policy"
	IDsKey    = "io.psi.ids" // makes a bundle one of psi's own
)

// Rules are what the configuration says for one class of containers.
type Rules struct {
	// Policy is the name of the policy of containers that bring none; "" is none.
	Policy string
	// Mandatory: what a container brings may permit nothing beyond Policy.
	Mandatory bool
	// Annotations lists those that count; a container with one of psi's that does not
	// count is refused. Each but io.psi.ids holds a policy. nil is io.psi.policy and,
	// where nothing is mandatory, io.psi.ids.
	Annotations []string
	// EngineMounts are directories of the host that the engine manages: what it mounts
	// from there needs no fs rule. /var/lib/kubelet/pods, for example.
	EngineMounts []string
}

// table is a table of the file: what is missing is nil.
type table struct {
	Policy       *string   `toml:"policy"`
	Mandatory    *bool     `toml:"mandatory"`
	Annotations  *[]string `toml:"annotations"`
	EngineMounts *[]string `toml:"engine_mounts"`
}

// over returns r with what the table says.
func (t table) over(r Rules) Rules {
	if t.Policy != nil {
		r.Policy = *t.Policy
	}
	if t.Mandatory != nil {
		r.Mandatory = *t.Mandatory
	}
	if t.Annotations != nil {
		r.Annotations = *t.Annotations
	}
	if t.EngineMounts != nil {
		r.EngineMounts = *t.EngineMounts
	}
	return r
}

// config is the file: rules for all, and for classes, which replace what they name.
type config struct {
	table
	Class map[string]table `toml:"class"`
}

const maxConfig = 1 << 20

// ReadConfig returns the rules of a class, which is the name that psi-runtime was
// started by. "" is [ConfigFile], which may be missing; any other file may not.
func ReadConfig(file, class string) (Rules, error) {
	missing := file == ""
	if missing {
		file = ConfigFile
	}
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if missing && errors.Is(err, os.ErrNotExist) {
		return Rules{}, nil
	}
	if err != nil {
		return Rules{}, fmt.Errorf("reading the configuration: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return Rules{}, fmt.Errorf("reading the configuration: %w", err)
	case !info.Mode().IsRegular() || info.Mode()&0o022 != 0:
		return Rules{}, fmt.Errorf("%s must be a regular file that only its owner may write (chmod go-w): it decides what containers may do", file)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return Rules{}, fmt.Errorf("reading the configuration: %w", err)
	}
	if len(data) > maxConfig {
		return Rules{}, fmt.Errorf("%s is larger than 1 MiB", file)
	}
	return parseConfig(string(data), file, class)
}

// counting are the annotations that count. A bundle that says it is psi's own is not
// narrowed, so it takes more than the default to believe it where a policy is required.
func (r Rules) counting(required bool) []string {
	switch {
	case r.Annotations != nil:
		return r.Annotations
	case required || r.Mandatory:
		return []string{PolicyKey}
	}
	return []string{PolicyKey, IDsKey}
}

// parseConfig reads the file strictly: a key that is not known is an error, in the
// tables of other classes too.
func parseConfig(text, file, class string) (Rules, error) {
	var c config
	if err := decode(text, &c); err != nil {
		return Rules{}, fmt.Errorf("%s%w", file, err)
	}
	common := c.over(Rules{})
	if err := common.check(); err != nil {
		return Rules{}, fmt.Errorf("%s: %w", file, err)
	}
	for name, t := range c.Class {
		if name == "" || strings.Contains(name, "/") {
			return Rules{}, fmt.Errorf("%s: class %q: it is the name of a program, without /", file, name)
		}
		if err := t.over(common).check(); err != nil {
			return Rules{}, fmt.Errorf("%s: class %q: %w", file, name, err)
		}
	}
	return c.Class[class].over(common), nil
}

// decode reports the place of an error as ":line:column: …".
func decode(text string, into any) error {
	d := toml.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	err := d.Decode(into)
	var strict *toml.StrictMissingError
	var wrong *toml.DecodeError
	switch {
	case errors.As(err, &strict) && len(strict.Errors) > 0:
		e := strict.Errors[0]
		row, column := e.Position()
		return fmt.Errorf(":%d:%d: %q is not a key: the keys are policy, mandatory, annotations, engine_mounts, and [class.NAME] tables of these", row, column, strings.Join(e.Key(), "."))
	case errors.As(err, &wrong):
		row, column := wrong.Position()
		return fmt.Errorf(":%d:%d: %w", row, column, wrong)
	case err != nil:
		return fmt.Errorf(": %w", err)
	}
	return nil
}

func (r Rules) check() error {
	if r.Mandatory && r.Policy == "" {
		return errors.New("mandatory = true without a policy: name one")
	}
	for _, a := range r.Annotations {
		if a == "" || strings.ContainsAny(a, " \t\n") {
			return fmt.Errorf("annotations: %q is not the name of an annotation", a)
		}
	}
	for _, m := range r.EngineMounts {
		if !path.IsAbs(m) || path.Clean(m) != m || m == "/" {
			return fmt.Errorf("engine_mounts: %q: it is an absolute path without . and .., and not /", m)
		}
	}
	return nil
}
