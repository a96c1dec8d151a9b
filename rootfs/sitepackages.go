package rootfs

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// addSitePackages plans the package directories given, merged into one, and
// the name under which Debian's packages expect it.
func (b *builder) addSitePackages(ctx context.Context) error {
	for _, given := range b.options.SitePackages {
		if err := ctx.Err(); err != nil {
			return err
		}
		dir, err := b.siteDirectory(given)
		if err != nil {
			return fmt.Errorf("using site packages %s: %w", given, err)
		}
		site := b.python.sitePath()
		taken := b.topLevel(site)
		copier := b.copier(dir, site)
		copier.skip = func(rel string) (string, bool) { return skipSite(dir, rel, taken) }
		if err := copier.run(); err != nil {
			return err
		}
	}
	if len(b.options.SitePackages) > 0 {
		b.tree.symlink("usr/lib/python3/dist-packages", "../python"+b.python.minor()+"/site-packages")
	}
	return nil
}

// siteDirectory returns the directory to copy for what the user gave, and
// refuses one made for another version, whose extension modules would not load.
func (b *builder) siteDirectory(given string) (string, error) {
	dir, err := filepath.Abs(given)
	if err != nil {
		return "", err
	}
	minor := "python" + b.python.minor()
	if _, err := os.Stat(filepath.Join(dir, "pyvenv.cfg")); err == nil {
		dir = filepath.Join(dir, "lib", minor, "site-packages")
	}
	info, err := os.Stat(dir)
	if err != nil {
		return "", fmt.Errorf("%w: give a directory of packages, such as VENV/lib/%s/site-packages", err, minor)
	}
	if !info.IsDir() {
		return "", fmt.Errorf("%s is not a directory: give a directory of packages, such as VENV/lib/%s/site-packages", dir, minor)
	}
	made := filepath.Base(filepath.Dir(dir))
	version, versioned := strings.CutPrefix(made, "python3.")
	if versioned && strings.TrimRight(version, "0123456789") == "" && made != minor {
		return "", fmt.Errorf("it belongs to %s and the interpreter is %s: give the packages of %s, or another --python", made, minor, minor)
	}
	return dir, nil
}

// topLevel returns the names already planned below the site directory, and
// whether each is a directory without __init__.py, which may be merged.
func (b *builder) topLevel(site string) map[string]bool {
	taken := map[string]bool{}
	for name, e := range b.tree.entries {
		rel, below := strings.CutPrefix(name, site+"/")
		if !below || strings.Contains(rel, "/") {
			continue
		}
		_, regular := b.tree.entries[name+"/__init__.py"]
		taken[rel] = e.kind == typeDir && !regular
	}
	return taken
}

// skipSite says what of a package directory is left out: start-up hooks, which
// no guest runs (it starts with -S); static libraries; and what an earlier
// directory shadows.
func skipSite(dir, rel string, taken map[string]bool) (string, bool) {
	topLevel := !strings.Contains(rel, "/")
	switch {
	case topLevel && strings.HasSuffix(rel, ".pth"):
		return "start-up hook of the site module, which guests do not run", true
	case topLevel && (rel == "sitecustomize.py" || rel == "usercustomize.py"):
		return "start-up hook of the site module, which guests do not run", true
	case strings.HasSuffix(rel, ".a"):
		return "static library", true
	}
	namespace, shadowed := taken[rel]
	if !topLevel || !shadowed {
		return "", false
	}
	if namespace {
		if _, err := os.Stat(filepath.Join(dir, rel, "__init__.py")); err != nil {
			return "", false
		}
	}
	return "an earlier --site-packages directory has it", true
}
