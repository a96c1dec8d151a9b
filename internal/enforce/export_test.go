package enforce

import "path/filepath"

// LoadFilesOf is LoadFiles of a psi whose programs have another digest.
func LoadFilesOf(version string) (*FilePrograms, error) {
	return loadFiles(filepath.Join(pinRoot, version))
}
