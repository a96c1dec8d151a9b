package main

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/psi-runtime/psi/pkg/policy"
)

func policyCheckCommand() *cli.Command {
	return &cli.Command{
		Name: "check", Usage: "report every error of policies", ArgsUsage: "FILE…",
		Description: "FILE is a YAML or JSON file, a name, or - for stdin. The exit code is 1 when there are errors, 2 when a file cannot be read; the others are checked all the same.",
		Flags:       []cli.Flag{jsonFlag(), &cli.BoolFlag{Name: "sarif", Usage: "print SARIF 2.1.0"}},
		Action: func(c *cli.Context) error {
			if err := policyArgs(c, 1, -1); err != nil {
				return trouble(err)
			}
			if c.Bool("json") && c.Bool("sarif") {
				return trouble(fmt.Errorf("--json and --sarif are two forms: choose one"))
			}
			files := []checkedFile{}
			var unread []error
			for _, name := range c.Args().Slice() {
				f, err := checkFile(c, name)
				if err != nil {
					unread = append(unread, err)
					continue
				}
				files = append(files, f)
			}
			found := reportChecks(c, files)
			if len(unread) > 0 {
				return trouble(errors.Join(unread...))
			}
			return found
		},
	}
}

// checkedFile is what check found in one file.
type checkedFile struct {
	File      string    `json:"file"`
	Sandboxes []string  `json:"sandboxes"`
	Errors    []finding `json:"errors"`
	Notes     []finding `json:"notes"`
	excerpts  []string  // by error
}

// finding is one error or note.
type finding struct {
	Line    int    `json:"line,omitempty"`
	Column  int    `json:"column,omitempty"`
	Key     string `json:"key,omitempty"`
	Value   string `json:"value,omitempty"`
	Rule    string `json:"rule,omitempty"`
	WayOut  string `json:"way_out,omitempty"`
	Nearest string `json:"nearest,omitempty"`
	Text    string `json:"text,omitempty"` // the line of the file
	Message string `json:"message"`        // all of it, as people read it
}

func checkFile(c *cli.Context, name string) (checkedFile, error) {
	data, source, sandbox, err := openPolicy(c, name)
	if err != nil {
		return checkedFile{}, err
	}
	f := checkedFile{File: source, Sandboxes: []string{}, Errors: []finding{}, Notes: []finding{}}
	f.addErrors(policy.CheckAll(data, source))
	if len(f.Errors) > 0 {
		return f, nil
	}
	document, errs := policy.ReadDocument(data, source)
	if len(errs) > 0 { // not reachable: CheckAll found none
		f.addErrors(errs)
		return f, nil
	}
	f.Sandboxes = append(f.Sandboxes, document.Names()...)
	if sandbox != "" {
		if _, err := document.Variables(sandbox); err != nil {
			return checkedFile{}, err
		}
	}
	for _, note := range document.Notes() {
		f.Notes = append(f.Notes, finding{Line: note.Line, Column: note.Column, Message: note.String()})
	}
	return f, nil
}

func (f *checkedFile) addErrors(errs []*policy.Error) {
	for _, e := range errs {
		f.Errors = append(f.Errors, finding{Line: e.Line, Column: e.Column, Key: e.Key, Value: e.Value, Rule: e.Rule,
			WayOut: e.WayOut, Nearest: e.Nearest, Text: e.Text, Message: e.Error()})
		f.excerpts = append(f.excerpts, e.Excerpt())
	}
}

// reportChecks prints in the form that was asked for.
func reportChecks(c *cli.Context, files []checkedFile) error {
	var err error
	switch {
	case c.Bool("json"):
		err = printJSON(c, map[string]any{"files": files})
	case c.Bool("sarif"):
		err = printJSON(c, sarif(files))
	default:
		for _, f := range files {
			for i, e := range f.Errors {
				fmt.Fprintf(c.App.Writer, "%s\n%s", e.Message, f.excerpts[i])
			}
			for _, n := range f.Notes {
				fmt.Fprintln(c.App.Writer, "note:", n.Message)
			}
		}
	}
	if err != nil {
		return trouble(err)
	}
	for _, f := range files {
		if len(f.Errors) > 0 {
			return exitStatus(codeFailure)
		}
	}
	return nil
}

func printJSON(c *cli.Context, value any) error {
	encoder := json.NewEncoder(c.App.Writer)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}

// sarif writes the findings as code scanners exchange them.
func sarif(files []checkedFile) any {
	type object = map[string]any
	results := []object{}
	add := func(file, level, rule string, f finding) {
		location := object{"artifactLocation": object{"uri": file}}
		if f.Line > 0 {
			region := object{"startLine": f.Line}
			if f.Column > 0 {
				region["startColumn"] = f.Column
			}
			location["region"] = region
		}
		results = append(results, object{"ruleId": rule, "level": level, "message": object{"text": f.Message},
			"locations": []object{{"physicalLocation": location}}})
	}
	for _, f := range files {
		for _, e := range f.Errors {
			add(f.File, "error", "policy/error", e)
		}
		for _, n := range f.Notes {
			add(f.File, "note", "policy/translated", n)
		}
	}
	return object{
		"$schema": "https://json.schemastore.org/sarif-2.1.0.json",
		"version": "2.1.0",
		"runs": []object{{
			"tool": object{"driver": object{
				"name": "psi-runtime policy check", "version": version,
				"rules": []object{
					{"id": "policy/error", "shortDescription": object{"text": "The policy is not valid."}},
					{"id": "policy/translated", "shortDescription": object{"text": "A document of PyIsolate is read with another meaning or form."}},
				},
			}},
			"columnKind": "unicodeCodePoints",
			"results":    results,
		}},
	}
}
