//go:build cuda && cudaemu

package cuda

/*
#cgo CXXFLAGS: -DFB_EMU -Wno-unknown-pragmas -Wno-unused-variable
#include <stdlib.h>
#include "emulate/emulate_api.h"
const char *fb_emu_selftest(int defect);
int fb_emu_cublaslt_double(int on, int fail);
int fb_emu_cublaslt_products(void);
*/
import "C"

import (
	"embed"
	"unsafe"
)

// Sources makes the kernels, which the go command does not know as sources,
// part of what a build of the emulation depends on.
//
//go:embed *.cu *.cuh emulate/*
var Sources embed.FS

// Emulate sets how emulated launches are scheduled from now on (see
// emulate_api.h) and the compute capability that Device reports.
func Emulate(seed uint32, sm int) { C.fb_emu_configure(C.uint(seed), C.int(sm)) }

// leaveOut makes every launch from now on skip the barrier in a line of a source.
func leaveOut(file string, line int) {
	name := C.CString(file)
	defer C.free(unsafe.Pointer(name))
	C.fb_emu_leave_out(name, C.int(line))
}

// EmulatorMessage says what the last failed launch was.
func EmulatorMessage() string {
	var text [512]C.char
	C.fb_emu_message(&text[0], C.size_t(len(text)))
	return C.GoString(&text[0])
}

// defect runs the self-test kernel with the given defect and returns what was
// found; cgo is not for test files.
func defect(n int) string { return C.GoString(C.fb_emu_selftest(C.int(n))) }

// cublasLtDouble puts a library of host memory in cuBLASLt's place, or takes it
// away; with fail 1 it finds no algorithm, with 2 its products fail. It returns how
// many of the library's objects are open.
func cublasLtDouble(on bool, fail int) int {
	return int(C.fb_emu_cublaslt_double(cbool(on), C.int(fail)))
}

// cublasLtProducts is how many products the double has computed since then.
func cublasLtProducts() int { return int(C.fb_emu_cublaslt_products()) }
