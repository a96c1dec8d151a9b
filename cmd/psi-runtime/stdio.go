package main

import (
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// stdio are the three files that a process in the foreground gets, and the copying
// that stands between them and ours where they must not be the same.
//
// A pipe, file or socket is handed over as it is: no copying, no second buffer. A
// terminal is not: a process that has it could push characters into the caller's
// input (TIOCSTI), so it gets a pipe and we copy.
type stdio struct {
	in, out, err *os.File
	close        []*os.File // our copies of what the process gets
	outputs      sync.WaitGroup
	readers      []*os.File
}

// foregroundStdio prepares the files.
func foregroundStdio() (*stdio, error) {
	s := &stdio{in: os.Stdin, out: os.Stdout, err: os.Stderr}
	if isTerminal(os.Stdin) {
		r, w, err := pipe()
		if err != nil {
			return nil, err
		}
		s.in = r
		s.close = append(s.close, r)
		go func() {
			_, _ = io.Copy(w, os.Stdin)
			w.Close()
		}()
	}
	for _, f := range []struct {
		ours *os.File
		its  **os.File
	}{{os.Stdout, &s.out}, {os.Stderr, &s.err}} {
		if !isTerminal(f.ours) {
			continue
		}
		r, w, err := pipe()
		if err != nil {
			return nil, err
		}
		*f.its = w
		s.close = append(s.close, w)
		s.readers = append(s.readers, r)
		s.outputs.Add(1)
		go func() {
			defer s.outputs.Done()
			_, _ = io.Copy(f.ours, r)
		}()
	}
	return s, nil
}

func pipe() (r, w *os.File, err error) {
	if r, w, err = os.Pipe(); err != nil {
		return nil, nil, fmt.Errorf("making a pipe: %w", err)
	}
	return r, w, nil
}

// started closes our copies of what the process has now.
func (s *stdio) started() {
	for _, f := range s.close {
		f.Close()
	}
	s.close = nil
}

// drain waits until everything the process wrote has been copied.
func (s *stdio) drain() {
	s.started()
	s.outputs.Wait()
	for _, r := range s.readers {
		r.Close()
	}
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
