package rootfs

import (
	"archive/tar"
	"bufio"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// writeTarFile writes the tree as a tar archive in a new file.
func writeTarFile(ctx context.Context, name string, t *tree) error {
	return writeFile(name, func(w io.Writer) error { return writeTar(ctx, w, t) })
}

// writeFile makes a new file of what write writes.
func writeFile(name string, write func(io.Writer) error) error {
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return fmt.Errorf("creating archive: %w", err)
	}
	buffered := bufio.NewWriterSize(file, 1<<20)
	if err := write(buffered); err != nil {
		file.Close()
		return err
	}
	if err := buffered.Flush(); err != nil {
		file.Close()
		return fmt.Errorf("writing archive: %w", err)
	}
	if err := file.Close(); err != nil {
		return fmt.Errorf("writing archive: %w", err)
	}
	return nil
}

// writeTar writes the tree as a tar stream with owners 0:0 and fixed times.
func writeTar(ctx context.Context, w io.Writer, t *tree) error {
	archive := tar.NewWriter(w)
	for _, e := range t.sorted() {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("writing archive: %w", err)
		}
		if err := archive.WriteHeader(tarHeader(e)); err != nil {
			return fmt.Errorf("writing archive: /%s: %w", e.path, err)
		}
		if e.kind != typeFile {
			continue
		}
		if err := e.copyTo(archive); err != nil {
			return err
		}
	}
	if err := archive.Close(); err != nil {
		return fmt.Errorf("writing archive: %w", err)
	}
	return nil
}

func tarHeader(e *entry) *tar.Header {
	header := &tar.Header{Name: e.path, Mode: int64(e.mode), ModTime: fixedTime()}
	switch e.kind {
	case typeDir:
		header.Typeflag, header.Name = tar.TypeDir, e.path+"/"
	case typeFile:
		header.Typeflag, header.Size = tar.TypeReg, e.size
	case typeLink:
		header.Typeflag, header.Linkname, header.Mode = tar.TypeSymlink, e.link, 0o777
	}
	return header
}

// archiveDir packs the files of a directory, in the order of their names,
// into a new tar archive.
func archiveDir(dir, name string) error {
	t := newTree()
	err := filepath.WalkDir(dir, func(at string, d fs.DirEntry, err error) error {
		if err != nil || at == dir {
			return err
		}
		rel, err := filepath.Rel(dir, at)
		if err != nil {
			return err
		}
		if d.IsDir() {
			t.dir(rel, 0o755)
			return nil
		}
		if err := t.file(rel, at); err != nil {
			return err
		}
		return t.entries[rel].measure()
	})
	if err != nil {
		return fmt.Errorf("archiving image: %w", err)
	}
	return writeTarFile(context.Background(), name, t)
}
