// Package disk asks the operating system about the disk under a directory.
package disk

import "errors"

// ErrFull is the error of every store below internal/ for want of space.
var ErrFull = errors.New("no space left")
