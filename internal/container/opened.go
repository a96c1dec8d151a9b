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
	err = eachDescriptor(pid, func(d descriptor) error {
		switch {
		case d.number == "":
			open = append(open, OpenedFile{PID: pid, Path: d.target})
			return nil
		case !strings.HasPrefix(d.target, "/"):
			return nil // no file
		}
		field, err := d.info("flags")
		if err != nil {
			return err
		}
		flags, err := strconv.ParseInt(field, 8, 64)
		access, handle := flags&unix.O_ACCMODE, flags&unix.O_PATH != 0
		open = append(open, OpenedFile{pid, d.target, !handle && access != unix.O_WRONLY, !handle && access != unix.O_RDONLY})
		return err
	})
	return open, err
}

// descriptor is one of a thread's, or, without a number, its working directory or root.
type descriptor struct {
	thread, number string // its directory in /proc
	link, target   string
}

// info is a field of the kernel's about a descriptor; "" if it has none.
func (d descriptor) info(field string) (string, error) {
	data, err := os.ReadFile(filepath.Join(d.thread, "fdinfo", d.number))
	_, rest, _ := strings.Cut("\n"+string(data), "\n"+field+":")
	line, _, _ := strings.Cut(rest, "\n")
	return strings.TrimSpace(line), err
}

// eachDescriptor calls do for all that the threads of a process have.
func eachDescriptor(pid int, do func(descriptor) error) error {
	threads, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "task"))
	if err != nil {
		return err
	}
	for _, thread := range threads {
		dir := filepath.Join("/proc", strconv.Itoa(pid), "task", thread.Name())
		names, err := os.ReadDir(dir + "/fd")
		if gone(err) != nil {
			return err
		}
		all := []descriptor{{thread: dir, link: dir + "/cwd"}, {thread: dir, link: dir + "/root"}}
		for _, name := range names {
			all = append(all, descriptor{thread: dir, number: name.Name(), link: filepath.Join(dir, "fd", name.Name())})
		}
		for _, d := range all {
			if d.target, err = os.Readlink(d.link); err == nil {
				err = do(d)
			}
			if gone(err) != nil { // closed is no error
				return err
			}
		}
	}
	return nil
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
