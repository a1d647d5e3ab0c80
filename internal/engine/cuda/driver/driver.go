//go:build cuda

package driver

/*
#cgo linux LDFLAGS: -ldl
#include "slots.h"
*/
import "C"

import (
	"fmt"
	"sync"
)

// Status is what cuInit answered, a CUresult.
type Status int

func (s Status) Error() string { return fmt.Sprintf("cuInit: CUDA error %d", int(s)) }

var loading struct {
	sync.Mutex
	done bool
}

// Load makes the driver's functions callable. It is cheap once it has succeeded;
// after a failure it tries again. It returns a Status where there is a driver that
// does not work, and another error where there is none.
func Load() error {
	loading.Lock()
	defer loading.Unlock()
	if loading.done {
		return nil
	}
	var text [256]C.char
	switch r := C.fewbit_load_driver(&text[0], C.ulong(len(text))); {
	case r == C.FEWBIT_NO_LIBRARY:
		return fmt.Errorf("the NVIDIA driver is not installed (%s)", C.GoString(&text[0]))
	case r != 0:
		return Status(r)
	}
	loading.done = true
	return nil
}
