// Package registry keeps models and datasets as files named by their SHA-256,
// and serves the promoted versions.
package registry

import (
	"errors"

	"github.com/fewbit/fewbit/internal/registry/disk"
)

// Errors of the registry; callers map them to a status by identity.
var (
	ErrNotFound = errors.New("not found")
	ErrNotReady = errors.New("not ready")
	ErrName     = errors.New("bad name")
	ErrTooLarge = errors.New("too large")
	ErrInvalid  = errors.New("invalid content")
	ErrNoSpace  = disk.ErrFull
	ErrInUse    = errors.New("in use")
	// ErrMemory: the version does not fit into the memory that models may take.
	ErrMemory = errors.New("too little memory for this model")
)
