package data

import (
	"fmt"
	"os"
	"path"
	"strings"

	"github.com/klauspost/compress/zip"
)

// isImageName reports whether a path has the extension of an image that is read.
func isImageName(name string) bool {
	switch strings.ToLower(path.Ext(name)) {
	case ".jpg", ".jpeg", ".png", ".webp":
		return true
	}
	return false
}

func openImageFolder(dir string, o Options) (source, error) {
	return nil, fmt.Errorf("%w: image folders are not read yet", ErrUnsupported)
}

func openImageZip(f *os.File, z *zip.Reader, name string, o Options) (source, error) {
	return nil, fmt.Errorf("%w: archives of images are not read yet", ErrUnsupported)
}
