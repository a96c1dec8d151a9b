package policy

import "slices"

// Preload returns the modules that the guest has loaded when its code begins, sorted: a warm
// interpreter that has them already can be forked. They are of those that it may import.
func (p Policy) Preload() []string { return slices.Clone(p.preload) }

// readPreload reads the key preload.
func (r *reader) readPreload(key string, n *node) {
	r.list(key, n, "write a list of modules, such as [numpy, pandas]", func(item *node) {
		if item.kind != textNode {
			r.wrong(key, item, "write the name of a module")
			return
		}
		err := r.policy.addPreload(item.text)
		if err == nil {
			err = r.policy.mayPreload(item.text)
		}
		if !r.found(err, key, item) {
			r.set(key, item.text, item)
		}
	})
}

func (p *Policy) addPreload(name string) *Error {
	if err := checkImport(name); err != nil {
		return err
	}
	at, found := slices.BinarySearch(p.preload, name)
	if found {
		return nil
	}
	if len(p.preload) >= maxRules {
		return tooMany(name)
	}
	p.preload = slices.Insert(p.preload, at, name)
	return nil
}

// mayPreload reports a module that is to be loaded and may not be imported.
func (p Policy) mayPreload(name string) *Error {
	if !p.importsLimited || len(coveredBy([]string{name}, p.imports)) > 0 {
		return nil
	}
	return &Error{Value: name, Rule: "is not among the policy's imports", WayOut: "add it to imports, or remove it here"}
}

// checkPreload is mayPreload for all: imports may have been limited since.
func (p Policy) checkPreload() *Error {
	for _, name := range p.preload {
		if err := p.mayPreload(name); err != nil {
			err.Key = "preload"
			return err
		}
	}
	return nil
}
