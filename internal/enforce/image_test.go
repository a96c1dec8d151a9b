package enforce

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"os"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/psi-runtime/psi/bpf"
)

// TestImage compares the images with the object files that they were made of.
func TestImage(t *testing.T) {
	net, err := bpf.LoadNet()
	if err != nil {
		t.Fatal(err)
	}
	pairs, err := bpf.LoadPairs()
	if err != nil {
		t.Fatal(err)
	}
	if digest := sha256.Sum256(bpf.NetObject()); bpf.NetImage().Digest != hex.EncodeToString(digest[:8]) {
		t.Errorf("digest %s, %x is that of the object file", bpf.NetImage().Digest, digest)
	}
	compareImage(t, bpf.NetImage(), net)
	compareImage(t, bpf.PairsImage(), pairs)
	// These maps of the pairs' programs are those of the others.
	for _, name := range []string{"guests", "accounts"} {
		m, want := pairs.Maps[name], net.Maps[name]
		if m.Type != want.Type || m.KeySize != want.KeySize || m.ValueSize != want.ValueSize || m.Flags != want.Flags {
			t.Errorf("map %s: %+v, the network programs have %+v", name, m, want)
		}
	}
}

func compareImage(t *testing.T, image *bpf.Image, spec *ebpf.CollectionSpec) {
	t.Helper()
	if len(image.Maps) != len(spec.Maps) || len(image.Programs) != len(spec.Programs) {
		t.Fatalf("%d maps and %d programs, the object file has %d and %d", len(image.Maps), len(image.Programs), len(spec.Maps), len(spec.Programs))
	}
	for _, m := range image.Maps {
		want := spec.Maps[m.Name]
		for image := &m; image != nil || want != nil; image, want = image.Inner, want.InnerMap {
			if image == nil || want == nil || *image != (bpf.MapImage{
				Name: m.Name, Type: uint32(want.Type), KeySize: want.KeySize, ValueSize: want.ValueSize, MaxEntries: want.MaxEntries, Flags: want.Flags,
				Inner: image.Inner,
			}) {
				t.Fatalf("map %s: %+v, %+v in the object file", m.Name, image, want)
			}
		}
	}
	for _, p := range image.Programs {
		want := spec.Programs[p.Name]
		if p.License != want.License || p.Type != uint32(want.Type) || p.ExpectedAttachType != uint32(want.AttachType) {
			t.Errorf("program %s: %+v, %+v in the object file", p.Name, p, want)
		}
		var instructions bytes.Buffer
		references := p.References
		for _, i := range want.Instructions {
			if name := i.Reference(); name != "" {
				if r := references[0]; r.Instruction != instructions.Len()/8 || image.Maps[r.Map].Name != name {
					t.Errorf("program %s: %+v, map %s in the object file", p.Name, r, name)
				}
				references = references[1:]
			}
			if _, err := i.Marshal(&instructions, binary.LittleEndian); err != nil {
				t.Fatal(err)
			}
		}
		var got bytes.Buffer
		if err := binary.Write(&got, binary.LittleEndian, p.Instructions); err != nil {
			t.Fatal(err)
		}
		if len(references) != 0 || !bytes.Equal(got.Bytes(), instructions.Bytes()) {
			t.Errorf("the instructions of program %s are not those of the object file", p.Name)
		}
	}
}

// TestLoadImage needs no help from the library that reads object files.
func TestLoadImage(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: CAP_BPF")
	}
	like := &ownerMaps{}
	if err := like.create(); err != nil {
		t.Fatal(err)
	}
	defer like.close()
	c, err := loadImage(bpf.NetImage(), like)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for name, m := range c.Maps {
		if info, err := m.Info(); err != nil || info.Name != name {
			t.Errorf("map %s: %+v, %v", name, info, err)
		}
	}
	for name, p := range c.Programs {
		id, err := programID(p)
		if err != nil {
			t.Fatal(err)
		}
		info, err := p.Info()
		if err != nil {
			t.Fatal(err)
		}
		if want, _ := info.ID(); info.Name != name || id != want {
			t.Errorf("program %s, number %d: %+v", name, id, info)
		}
	}
	image := *bpf.NetImage()
	image.Programs = append([]bpf.ProgramImage{}, image.Programs...)
	image.Programs[0].Instructions = image.Programs[0].Instructions[1:]
	if c, err := loadImage(&image, like); err == nil {
		c.Close()
		t.Error("the verifier took half of a program")
	}
}
