package modules

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
)

// File is where a root file system keeps its graph.
const File = "usr/lib/psi/modules.json"

// maxFile bounds what is read of it, in bytes; a root with numpy and pandas has 0.5 MB.
const maxFile = 64 << 20

// Graph is what the modules of a root file system import. Paths are slash-separated
// and relative to the root.
type Graph struct {
	Library  string `json:"library"`   // directory of the standard library
	CacheTag string `json:"cache_tag"` // in the names of bytecode files: "cpython-311"
	Program  string `json:"program"`   // the interpreter

	// Base lists the modules that the interpreter and the agent load.
	Base []string `json:"base"`
	// Modules holds every module by its full name. Imports name no others.
	Modules map[string]Module `json:"modules"`
	// Needs lists, for each program, extension module and shared library, the shared
	// libraries that it is linked with, as files of the root.
	Needs map[string][]string `json:"needs"`
}

// Module is one module or package.
type Module struct {
	File    string   `json:"file,omitempty"`    // source or extension; "" when it is built into the interpreter, or a directory only
	Imports []string `json:"imports,omitempty"` // what loading it loads
	Later   []string `json:"later,omitempty"`   // what its functions load when they are called
	// Open says that it also imports names that nobody can read in its source: any of
	// its own top-level package.
	Open bool `json:"open,omitempty"`
}

// ErrNoGraph means that a root file system was built without a module graph.
var ErrNoGraph = errors.New("the root file system has no module graph (" + File + "): build it again with `psi-runtime rootfs build`")

// Read reads the graph of a root file system.
func Read(root fs.FS) (*Graph, error) {
	file, err := root.Open(File)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoGraph
	}
	if err != nil {
		return nil, fmt.Errorf("reading module graph: %w", err)
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading module graph: %w", err)
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("reading module graph: %s is larger than %d bytes", File, maxFile)
	}
	var g Graph
	if err := json.Unmarshal(data, &g); err != nil {
		return nil, fmt.Errorf("reading module graph: %s: %w", File, err)
	}
	if g.Library == "" || g.Program == "" || len(g.Base) == 0 {
		return nil, fmt.Errorf("reading module graph: %s names no library, program or base", File)
	}
	return &g, nil
}

// Encode writes the graph as Read wants it. Equal graphs give equal bytes: one line
// for each module, in the order of their names.
func (g *Graph) Encode() ([]byte, error) {
	data, err := json.MarshalIndent(g, "", " ")
	if err != nil {
		return nil, fmt.Errorf("encoding module graph: %w", err)
	}
	return append(data, '\n'), nil
}

// bytecode is where the import system looks for a source's bytecode.
func (g *Graph) bytecode(source string) string {
	dir, file := path.Split(source)
	return dir + "__pycache__/" + strings.TrimSuffix(file, ".py") + "." + g.CacheTag + ".pyc"
}

// files are the files of a module.
func (g *Graph) files(m Module) []string {
	switch {
	case m.File == "":
		return nil
	case strings.HasSuffix(m.File, ".py"):
		return []string{m.File, g.bytecode(m.File)}
	}
	return []string{m.File}
}
