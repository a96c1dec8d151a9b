package rootfs

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

//go:embed scripts/compile.py
var compileScript string

// batchSize is how many files one interpreter process compiles. It is fixed,
// and not derived from the number of cores, because it shows in the bytecode:
// see scripts/compile.py.
const batchSize = 64

// addrNoRandomize is ADDR_NO_RANDOMIZE of personality(2).
const addrNoRandomize = 0x0040000

// compilation is one source to compile, in the order of compile.py's input.
type compilation struct{ source, target, name string }

func (c compilation) MarshalJSON() ([]byte, error) {
	return json.Marshal([]string{c.source, c.target, c.name})
}

// addBytecode has the interpreter compile every source in the tree and plans
// the results: where the import system looks, and for the agent beside the
// source too, as bundles start agent.pyc itself and not through an import.
func (b *builder) addBytecode(ctx context.Context) error {
	todo, err := b.compilations()
	if err != nil {
		return err
	}
	failed, err := b.compile(ctx, todo)
	if err != nil {
		return err
	}
	for _, c := range todo {
		name := strings.TrimPrefix(c.name, "/")
		if reason, ok := failed[c.name]; ok {
			if strings.HasPrefix(name, agentDir+"/") {
				return fmt.Errorf("compiling agent %s with %s: %s: the agent does not support this version", c.name, b.python.Executable, reason)
			}
			b.leaveOut(c.name, "no bytecode, the source does not compile ("+reason+")")
			continue
		}
		if err := b.tree.file(b.python.cached(name), c.target); err != nil {
			return err
		}
		if name == agentDir+"/agent.py" {
			if err := b.tree.file(name+"c", c.target); err != nil {
				return err
			}
		} else if strings.HasPrefix(name, agentDir+"/") {
			b.tree.symlink(name+"c", strings.TrimPrefix(b.python.cached(name), agentDir+"/"))
		}
	}
	return nil
}

// compilations lists the sources of the tree in the order of their paths.
func (b *builder) compilations() ([]compilation, error) {
	var todo []compilation
	for _, e := range b.tree.sorted() {
		if e.kind != typeFile || !strings.HasSuffix(e.path, ".py") || e.path == agentDir+"/entry.py" {
			continue
		}
		c := compilation{e.source, filepath.Join(b.work, "bytecode", e.path+"c"), "/" + e.path}
		if c.source == "" {
			c.source = filepath.Join(b.work, "sources", e.path)
			if err := writeNewFile(c.source, e.data); err != nil {
				return nil, err
			}
		}
		todo = append(todo, c)
	}
	return todo, nil
}

// compile runs all compilations in batches, as many at a time as there are
// cores, and returns the ones whose source does not compile with the reason.
func (b *builder) compile(ctx context.Context, todo []compilation) (map[string]string, error) {
	cwd := filepath.Join(b.work, "empty") // sys.path[0] of the compiler
	if err := os.Mkdir(cwd, 0o700); err != nil {
		return nil, fmt.Errorf("compiling bytecode: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		running sync.WaitGroup
		mu      sync.Mutex // guards failed
		failed  = map[string]string{}
		slots   = make(chan struct{}, runtime.NumCPU())
	)
	for len(todo) > 0 && ctx.Err() == nil {
		batch := todo[:min(batchSize, len(todo))]
		todo = todo[len(batch):]
		slots <- struct{}{}
		running.Go(func() {
			defer func() { <-slots }()
			failures, err := b.compileBatch(ctx, cwd, batch)
			if err != nil {
				cancel(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			for _, f := range failures {
				failed[f[0]] = f[1]
			}
		})
	}
	running.Wait()
	if err := context.Cause(ctx); err != nil {
		return nil, fmt.Errorf("compiling bytecode: %w", err)
	}
	return failed, nil
}

// compileBatch runs one compiler process and returns [name, error] pairs.
func (b *builder) compileBatch(ctx context.Context, cwd string, batch []compilation) ([][2]string, error) {
	input, err := json.Marshal(batch)
	if err != nil {
		return nil, err
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, b.python.Executable, "-S", "-s", "-W", "ignore", "-c", compileScript)
	cmd.Dir = cwd
	cmd.Env = []string{"PATH=/usr/bin:/bin", "PYTHONHASHSEED=0", "PYTHONUTF8=1", "PYTHONDONTWRITEBYTECODE=1"}
	if path := os.Getenv("LD_LIBRARY_PATH"); path != "" { // may be how it finds libpython
		cmd.Env = append(cmd.Env, "LD_LIBRARY_PATH="+path)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &stdout, &stderr
	if err := startWithoutASLR(cmd); err != nil {
		return nil, err
	}
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("%s: %w%s", b.python.Executable, err, lastLine(stderr.String()))
	}
	var failures [][2]string
	if err := json.Unmarshal(stdout.Bytes(), &failures); err != nil {
		return nil, fmt.Errorf("reading the answer of %s: %w", b.python.Executable, err)
	}
	return failures, nil
}

// startWithoutASLR starts cmd with a fixed address layout. Before CPython
// 3.12 the hash of None is its address, which decides the order of a constant
// such as frozenset({None, "a"}) and with it the bytecode. The personality is
// a thread's and is inherited by what the thread starts. Where it may not be
// set (some container engines forbid it), only such constants are affected.
func startWithoutASLR(cmd *exec.Cmd) error {
	runtime.LockOSThread()
	const query = 0xffffffff
	old, _, errno := unix.Syscall(unix.SYS_PERSONALITY, query, 0, 0)
	if errno == 0 {
		_, _, errno = unix.Syscall(unix.SYS_PERSONALITY, old|addrNoRandomize, 0, 0)
	}
	err := cmd.Start()
	if errno == 0 {
		if _, _, errno := unix.Syscall(unix.SYS_PERSONALITY, old, 0, 0); errno != 0 {
			return err // the thread stays locked and ends with its goroutine
		}
	}
	runtime.UnlockOSThread()
	return err
}

func writeNewFile(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}
