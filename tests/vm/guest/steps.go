package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// step is one command of /psi/steps.json, written by tests/vm.
type step struct {
	Name    string   `json:"name"`
	Dir     string   `json:"dir"`
	Args    []string `json:"args"`
	Env     []string `json:"env"`
	Seconds int      `json:"seconds"`
}

// runSteps runs every step, whatever the earlier ones said, and returns 0 when all succeeded.
func runSteps() int {
	data, err := os.ReadFile("/psi/steps.json")
	if err != nil {
		fmt.Println("guest:", err)
		return 1
	}
	var steps []step
	if err := json.Unmarshal(data, &steps); err != nil {
		fmt.Println("guest: reading steps:", err)
		return 1
	}
	code := 0
	for _, s := range steps {
		start := time.Now()
		err := runStep(s)
		verdict := "ok"
		if err != nil {
			verdict, code = "FAIL: "+err.Error(), 1
		}
		fmt.Printf("vm %-40s %6.1f s of %d s  %s\n", s.Name, time.Since(start).Seconds(), s.Seconds, verdict)
	}
	if err := sendReports("/src/build/reports"); err != nil {
		fmt.Println("guest:", err)
		return 1
	}
	return code
}

// sendReports writes the files of a directory as lines that tests/vm makes files of again.
func sendReports(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		return err
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("sending a report: %w", err)
		}
		fmt.Printf("PSI-VM-REPORT %s %s\n", filepath.Base(file), base64.StdEncoding.EncodeToString(data))
	}
	return nil
}

// runStep runs one command in a process group of its own and ends the whole group at its time limit.
func runStep(s step) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(s.Seconds)*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.Args[0], s.Args[1:]...)
	cmd.Dir = s.Dir
	cmd.Env = append(os.Environ(), s.Env...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	if ctx.Err() != nil {
		return fmt.Errorf("over its time limit")
	}
	return err
}
