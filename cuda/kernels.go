//go:build cuda

package cuda

// #include "fewbit_cuda.h"
import "C"

import "unsafe"

// Entry is a function of the C interface; Family is the source file that has it.
type Entry struct{ Name, Family string }

// Entries lists the C interface, in the order of fewbit_cuda.h.
func Entries() []Entry {
	var n C.int
	first := C.fb_entries(&n)
	all := make([]Entry, n)
	for i, e := range unsafe.Slice(first, int(n)) {
		all[i] = Entry{C.GoString(e.name), C.GoString(e.family)}
	}
	return all
}
