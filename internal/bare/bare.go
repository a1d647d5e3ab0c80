// Package bare takes file names out of file-system errors: what a client or a
// report reads shows no folder of this machine. Callers name the file
// themselves, by its base name.
package bare

import (
	"errors"
	"os"
)

// Error returns the cause inside an *os.PathError or *os.LinkError anywhere in
// err's chain, or err when there is none.
func Error(err error) error {
	if e := (*os.PathError)(nil); errors.As(err, &e) {
		return e.Err
	}
	if e := (*os.LinkError)(nil); errors.As(err, &e) {
		return e.Err
	}
	return err
}
