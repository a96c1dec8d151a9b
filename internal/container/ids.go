package container

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// The host ids that psi hands out: 2^24 of them from 0x70000000 on, outside
// the ranges of /etc/subuid (100000…) and systemd-nspawn (524288…1879048191).
// The lower half is handed out one by one, the upper in blocks of 65,536.
const (
	FirstID   = 1879048192
	idCount   = 1 << 24
	blockSize = 1 << 16

	singleIDs = idCount / 2
	blocks    = idCount / 2 / blockSize
)

// idRange is what one guest has: host ids First … First+Size-1, for users and
// groups alike. The zero value is none.
type idRange struct {
	First uint32 `json:"first"`
	Size  uint32 `json:"size"`
}

// file is the claim on r: a hard link to the journal of the container that has it.
func (r idRange) file(run runDir) string {
	return filepath.Join(string(run), "@"+strconv.FormatUint(uint64(r.First), 10))
}

// pickIDs names a range of the given size at random without claiming it. At
// random, because an id that was freed a moment ago still has resources charged
// to it by the kernel (keyrings, message queues), and because nobody has to read
// the directory to find a free one.
func pickIDs(size uint32) (idRange, error) {
	switch size {
	case 1:
		return idRange{FirstID + rand.Uint32N(singleIDs), 1}, nil
	case blockSize:
		return idRange{FirstID + singleIDs + rand.Uint32N(blocks)*blockSize, blockSize}, nil
	}
	return idRange{}, fmt.Errorf("io.psi.ids=auto maps 1 or %d ids, not %d", blockSize, size)
}

// AutoIDs reports whether the bundle is one of psi's own: it gets ids and a root
// of its own.
func AutoIDs(s *specs.Spec) bool { return s.Annotations[annotationIDs] == "auto" }

// autoIDs reports whether the spec asks for ids of its own (io.psi.ids=auto),
// and which host id in it stands for them. Such a spec maps container id 0
// and nothing else, for users and groups in the same way.
func autoIDs(s *specs.Spec) (placeholder, size uint32, auto bool, err error) {
	switch v := s.Annotations[annotationIDs]; v {
	case "":
		return 0, 0, false, nil
	case "auto":
	default:
		return 0, 0, false, fmt.Errorf("annotation %s is %q: the only value is \"auto\"", annotationIDs, v)
	}
	const rule = "io.psi.ids=auto needs one uid and one gid mapping, both from container id 0 to the same host id and of the same size"
	if s.Linux == nil || len(s.Linux.UIDMappings) != 1 || len(s.Linux.GIDMappings) != 1 {
		return 0, 0, false, errors.New(rule)
	}
	if !newUserNamespace(s.Linux.Namespaces) {
		return 0, 0, false, errors.New("io.psi.ids=auto needs a new user namespace: add {\"type\": \"user\"} to linux.namespaces, or leave the annotation out")
	}
	u, g := s.Linux.UIDMappings[0], s.Linux.GIDMappings[0]
	if u != g || u.ContainerID != 0 {
		return 0, 0, false, errors.New(rule)
	}
	return u.HostID, u.Size, true, nil
}

// newUserNamespace reports whether the container gets a user namespace of its own. Without
// one the mappings would mean nothing, and the guest would be the host's root.
func newUserNamespace(namespaces []specs.LinuxNamespace) bool {
	for _, n := range namespaces {
		if n.Type == specs.UserNamespace {
			return n.Path == ""
		}
	}
	return false
}

// withIDs returns a copy of the spec in which the guest's own range stands in
// place of placeholder, and in which idmapped mounts show the files of the
// client (uid, gid on the file system) as the guest's own.
func withIDs(s *specs.Spec, placeholder uint32, r idRange, uid, gid uint32) *specs.Spec {
	out, linux := *s, *s.Linux
	linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: r.First, Size: r.Size}}
	linux.GIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: r.First, Size: r.Size}}
	out.Linux = &linux
	out.Mounts = make([]specs.Mount, len(s.Mounts))
	for i, m := range s.Mounts {
		m.UIDMappings = mapClient(m.UIDMappings, placeholder, r, uid)
		m.GIDMappings = mapClient(m.GIDMappings, placeholder, r, gid)
		out.Mounts[i] = m
	}
	return &out
}

func mapClient(in []specs.LinuxIDMapping, placeholder uint32, r idRange, client uint32) []specs.LinuxIDMapping {
	if in == nil {
		return nil
	}
	out := make([]specs.LinuxIDMapping, len(in))
	for i, m := range in {
		if m.HostID == placeholder {
			m.HostID = r.First
			if m.ContainerID == 0 {
				m.ContainerID = client
			}
		}
		out[i] = m
	}
	return out
}
