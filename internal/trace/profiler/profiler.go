// Package profiler shows requests to profilers that run the server: Nsight Systems
// through NVTX, VTune through the ITT API. Each of them names a library of its own
// in the environment of the program that it starts; without one nothing is loaded.
//
// The folders nvtx3 (NVTX 3, Apache-2.0 with LLVM exceptions) and ittapi (ITT API
// 3.26.7, BSD-3-Clause) are their authors' files, unchanged.
package profiler

// #cgo CFLAGS: -I${SRCDIR}/ittapi
// #cgo linux LDFLAGS: -ldl
// #include <stdlib.h>
// #include "markers.h"
import "C"

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"
)

// Variables in which a profiler names its library.
const (
	EnvNVTX = "NVTX_INJECTION64_PATH"
	EnvITT  = "INTEL_LIBITTNOTIFY64"
)

// maxNames bounds the names that are kept for the profilers; ranges with further
// ones are called otherName.
const (
	maxNames  = 4096
	otherName = "other models"
)

// ErrLibrary: a profiler's library cannot be used.
var ErrLibrary = errors.New("profiler library")

// Marker shows ranges to one profiler. It is a trace.Marker.
type Marker struct {
	name  string
	keep  func(name *C.char) unsafe.Pointer // what begin takes for a name
	begin func(id uint64, name unsafe.Pointer) uint64
	end   func(id uint64)

	ids   atomic.Uint64
	names sync.Map // string to unsafe.Pointer
	mu    sync.Mutex
	kept  int
}

// String names the annotations: NVTX or ITT.
func (m *Marker) String() string { return m.name }

// Open returns a marker for each profiler that listens. Of one whose library
// cannot be used the error tells; the others work all the same.
func Open() (ms []*Marker, err error) { return openOnce() }

// The profilers' own code keeps one library for the process.
var openOnce = sync.OnceValues(open)

func open() (ms []*Marker, err error) {
	for _, p := range []struct {
		env  string
		open func() C.int
		m    *Marker
	}{
		{EnvNVTX, func() C.int { return C.fbp_nvtx_open() }, &Marker{name: "NVTX",
			keep: func(name *C.char) unsafe.Pointer { return unsafe.Pointer(name) },
			begin: func(_ uint64, name unsafe.Pointer) uint64 {
				return uint64(C.fbp_nvtx_begin((*C.char)(name)))
			},
			end: func(id uint64) { C.fbp_nvtx_end(C.uint64_t(id)) }}},
		{EnvITT, func() C.int { return C.fbp_itt_open() }, &Marker{name: "ITT",
			keep: func(name *C.char) unsafe.Pointer { return C.fbp_itt_name(name) },
			begin: func(id uint64, name unsafe.Pointer) uint64 {
				C.fbp_itt_begin(C.uint64_t(id), name)
				return id
			},
			end: func(id uint64) { C.fbp_itt_end(C.uint64_t(id)) }}},
	} {
		switch {
		case os.Getenv(p.env) == "":
		case p.open() == 0:
			err = errors.Join(err, fmt.Errorf("%w: what %s names cannot be loaded, or does not take %s's calls; start the server from the profiler, or without this variable", ErrLibrary, p.env, p.m.name))
		default:
			ms = append(ms, p.m)
		}
	}
	return ms, err
}

// Begin opens a range; the function that it returns ends it, on any thread.
func (m *Marker) Begin(name string) (end func()) {
	id := m.begin(m.ids.Add(1), m.nameOf(name))
	return func() { m.end(id) }
}

// nameOf returns the profiler's form of a name, which is made once.
func (m *Marker) nameOf(name string) unsafe.Pointer {
	if p, ok := m.names.Load(name); ok {
		return p.(unsafe.Pointer)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.kept >= maxNames {
		name = otherName
	}
	if p, ok := m.names.Load(name); ok {
		return p.(unsafe.Pointer)
	}
	m.kept++
	p := m.keep(C.CString(name)) // for the life of the process
	m.names.Store(name, p)
	return p
}
