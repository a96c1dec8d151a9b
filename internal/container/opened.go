package container

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// OpenedFile is a file that a process of a container has open or mapped.
type OpenedFile struct {
	PID         int
	Path        string // as the container sees it; with " (deleted)" if it has no name any more
	Read, Write bool   // neither for what can be used to open more only
}

// Opened lists what a frozen container's processes have open: not what is in flight in a
// socket, which nobody can list.
func (c *Container) Opened() (all []OpenedFile, err error) { return c.opened(descriptors) }

// Held is Opened with what can be used to open more: handles (O_PATH) and where processes are.
func (c *Container) Held() (all []OpenedFile, err error) { return c.opened(handles) }

func (c *Container) opened(of func(pid int) ([]OpenedFile, error)) (all []OpenedFile, err error) {
	group, err := c.UnifiedCgroup()
	if err != nil {
		return nil, err
	}
	pids, err := groupPIDs(group)
	if err != nil {
		return nil, err
	}
	for _, pid := range pids {
		open, err := of(pid)
		mapped, mapErr := mappings(pid)
		if err := errors.Join(gone(err), gone(mapErr)); err != nil {
			return nil, fmt.Errorf("looking at what process %d of container %s has open: %w", pid, c.id, err)
		}
		all = append(append(all, open...), mapped...)
	}
	return all, nil
}

// gone forgives the error of a process that was killed meanwhile.
func gone(err error) error {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// descriptors are those of all threads without handles: each may have a table of its own.
func descriptors(pid int) (open []OpenedFile, err error) {
	all, err := handles(pid)
	return slices.DeleteFunc(all, func(f OpenedFile) bool { return !f.Read && !f.Write }), err
}

// handles are the descriptors of all threads, and where these are.
func handles(pid int) (open []OpenedFile, err error) {
	threads, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "task"))
	if err != nil {
		return nil, err
	}
	for _, thread := range threads {
		dir := filepath.Join("/proc", strconv.Itoa(pid), "task", thread.Name())
		for _, name := range []string{"/cwd", "/root"} {
			if path, err := os.Readlink(dir + name); err == nil {
				open = append(open, OpenedFile{PID: pid, Path: path})
			}
		}
		names, err := os.ReadDir(dir + "/fd")
		if gone(err) != nil {
			return nil, err
		}
		for _, name := range names {
			path, err := os.Readlink(filepath.Join(dir, "fd", name.Name()))
			if err != nil || !strings.HasPrefix(path, "/") {
				continue // closed, or no file
			}
			flags, err := descriptorFlags(filepath.Join(dir, "fdinfo", name.Name()))
			if err != nil {
				return nil, err
			}
			access := flags & unix.O_ACCMODE
			handle := flags&unix.O_PATH != 0
			open = append(open, OpenedFile{pid, path, !handle && access != unix.O_WRONLY, !handle && access != unix.O_RDONLY})
		}
	}
	return open, nil
}

func descriptorFlags(file string) (int, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(data), "flags:")
	line, _, _ := strings.Cut(rest, "\n")
	flags, err := strconv.ParseInt(strings.TrimSpace(line), 8, 64)
	return int(flags), err
}

// mappings are the files that a process has mapped.
func mappings(pid int) (mapped []OpenedFile, err error) {
	f, err := os.Open(filepath.Join("/proc", strconv.Itoa(pid), "maps"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	seen := make(map[OpenedFile]bool)
	for lines := bufio.NewScanner(f); ; {
		if !lines.Scan() {
			return mapped, lines.Err()
		}
		// address perms offset device inode path
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 || fields[4] == "0" {
			continue // no file
		}
		path, err := mappedPath(pid, fields[0])
		if gone(err) != nil {
			return nil, err
		}
		file := OpenedFile{pid, path, true, strings.HasSuffix(fields[1], "s") && strings.Contains(fields[1], "w")}
		if strings.HasPrefix(path, "/") && !seen[file] {
			seen[file] = true
			mapped = append(mapped, file)
		}
	}
}

// mappedPath is the path of what is mapped at an address. The line that has the address has it
// too, but writes a line's end in it as four characters, which a name can have as well.
func mappedPath(pid int, address string) (string, error) {
	var first, end uint64
	if _, err := fmt.Sscanf(address, "%x-%x", &first, &end); err != nil {
		return "", fmt.Errorf("reading the address of a mapping, %q: %w", address, err)
	}
	return os.Readlink(fmt.Sprintf("/proc/%d/map_files/%x-%x", pid, first, end))
}
