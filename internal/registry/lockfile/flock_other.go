//go:build !unix

package lockfile

import (
	"errors"
	"os"
)

func flock(*os.File, bool, bool) error {
	return errors.New("lock file: file locks are not available on this system, use Linux or macOS")
}

func unlock(*os.File) {}
