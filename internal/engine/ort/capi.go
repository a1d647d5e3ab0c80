package ort

// #cgo CFLAGS: -I${SRCDIR}/../../../cpu
// #cgo LDFLAGS: -ldl
// #include "shim.h"
// #include <stdlib.h>
import "C"

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"unsafe"

	ortgo "github.com/yalue/onnxruntime_go"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/tensor"
)

// statusError is an error of the C API with its code.
type statusError struct {
	code int // OrtErrorCode
	text string
}

func (e *statusError) Error() string { return e.text }

// Codes of OrtErrorCode that are told apart.
const (
	codeInvalidArgument  = 2
	codeRuntimeException = 6
	codeFail             = 1
)

// status takes ownership of st and returns it as an error, nil for nil.
func status(st *C.OrtStatus) error {
	if st == nil {
		return nil
	}
	e := &statusError{code: int(C.fbort_status_code(st)), text: C.GoString(C.fbort_status_text(st))}
	C.fbort_status_release(st)
	return e
}

// load opens the library, checks its version and binds its API.
func load(lib string) (version, path string, err error) {
	v, p, why, err := tryLoad(lib)
	if err != nil {
		return "", "", fmt.Errorf("%w: %s cannot be loaded: %s; %s", engine.ErrUnavailable, lib, oneLine(why), remedy)
	}
	if err := checkVersion(v, p); err != nil {
		C.fbort_unload()
		return "", "", err
	}
	if C.fbort_bind() == 0 {
		C.fbort_unload()
		return "", "", fmt.Errorf("%w: %s is ONNX Runtime %s and lacks the API of %s; %s", engine.ErrUnavailable, p, v, MinVersion, remedy)
	}
	return v, p, nil
}

var errLoad = errors.New("library cannot be loaded")

func tryLoad(lib string) (version, path, why string, err error) {
	const size = 4096
	cl := C.CString(lib)
	defer C.free(unsafe.Pointer(cl))
	buf := (*[3][size]C.char)(C.calloc(3, size))
	if buf == nil {
		return "", "", "out of memory", errLoad
	}
	defer C.free(unsafe.Pointer(buf))
	if C.fbort_load(cl, &buf[0][0], size, &buf[1][0], size, &buf[2][0], size) != 0 {
		return "", "", C.GoString(&buf[2][0]), errLoad
	}
	return C.GoString(&buf[0][0]), C.GoString(&buf[1][0]), "", nil
}

// canLoad reports whether the dynamic linker finds name. Called only before the
// API is bound.
func canLoad(name string) bool {
	if _, _, _, err := tryLoad(name); err != nil {
		return false
	}
	C.fbort_unload()
	return true
}

// Trim gives back to the system what closed sessions have freed: glibc keeps it
// in the arenas of the threads that allocated it.
func (e *Engine) Trim() { C.fbort_trim() }

func newEnv(threads int, spin bool) error {
	n := C.int(0)
	if spin {
		n = 1
	}
	return status(C.fbort_env_new(C.int(threads), n))
}

// Log returns and forgets what ONNX Runtime has logged at severity error since
// the last call: the newest 32 lines, the newest last, cut at 511 bytes.
// Nothing of it goes to stderr.
func (e *Engine) Log() []string {
	buf := C.calloc(C.FBORT_LOG_LINES, C.FBORT_LOG_BYTES)
	if buf == nil {
		return nil
	}
	defer C.free(buf)
	n := int(C.fbort_log_take((*C.char)(buf)))
	all := unsafe.Slice((*byte)(buf), C.FBORT_LOG_LINES*C.FBORT_LOG_BYTES)
	lines := strings.SplitN(string(all), "\x00", n+1)[:n]
	for i := range lines {
		lines[i] = oneLine(lines[i])
	}
	return lines
}

// field returns the pointer in an unexported field of one of onnxruntime_go's
// wrappers, reached by name, so that a changed layout is an error rather than a
// stray pointer.
func field(v any, path ...string) (unsafe.Pointer, error) {
	r := reflect.ValueOf(v)
	for _, name := range path {
		if r.Kind() == reflect.Pointer && !r.IsNil() {
			r = r.Elem()
		}
		if r.Kind() == reflect.Struct {
			r = r.FieldByName(name)
		} else {
			r = reflect.Value{}
		}
		if !r.IsValid() || r.Kind() != reflect.Pointer {
			return nil, fmt.Errorf("%w: onnxruntime_go's %T has no pointer %s; fewbit was built with a version it does not know",
				engine.ErrUnavailable, v, strings.Join(path, "."))
		}
	}
	return r.UnsafePointer(), nil
}

func optionsPointer(o *ortgo.SessionOptions) (*C.OrtSessionOptions, error) {
	p, err := field(o, "o")
	return (*C.OrtSessionOptions)(p), err
}

func runOptionsPointer(o *ortgo.RunOptions) (*C.OrtRunOptions, error) {
	p, err := field(o, "o")
	return (*C.OrtRunOptions)(p), err
}

// openSession loads the model at path.
func openSession(path string, o *ortgo.SessionOptions) (*C.OrtSession, error) {
	p, err := optionsPointer(o)
	if err != nil {
		return nil, err
	}
	cp := C.CString(path)
	defer C.free(unsafe.Pointer(cp))
	var s *C.OrtSession
	err = status(C.fbort_session_new(cp, p, &s))
	return s, err
}

func releaseSession(s *C.OrtSession) { C.fbort_session_release(s) }

// metadata reads the model's metadata_props.
func metadata(s *C.OrtSession) (map[string]string, error) {
	var m *C.OrtModelMetadata
	var keys **C.char
	var n C.int64_t
	err := status(C.fbort_metadata(s, &m, &keys, &n))
	if m != nil {
		defer C.fbort_metadata_release(m)
	}
	if err != nil {
		return nil, err
	}
	props := make(map[string]string, n)
	if keys == nil {
		return props, nil
	}
	defer C.fbort_free(unsafe.Pointer(keys))
	for _, k := range unsafe.Slice(keys, n) {
		var v *C.char
		if e := status(C.fbort_metadata_value(m, k, &v)); e != nil {
			err = e
		} else if v != nil {
			props[C.GoString(k)] = C.GoString(v)
			C.fbort_free(unsafe.Pointer(v))
		}
		C.fbort_free(unsafe.Pointer(k))
	}
	return props, err
}

// checkLayout finds out at start, not in the first request, whether the
// wrappers are as expected.
func checkLayout() error {
	_, err1 := optionsPointer(&ortgo.SessionOptions{})
	_, err2 := runOptionsPointer(&ortgo.RunOptions{})
	return errors.Join(err1, err2)
}

func shareThreads(o *ortgo.SessionOptions) error {
	p, err := optionsPointer(o)
	if err != nil {
		return err
	}
	return status(C.fbort_share_threads(p))
}

// cancelLoad tells the session creation that uses o to stop. It cannot fail
// usefully: the load then ends by itself.
func cancelLoad(o *ortgo.SessionOptions) {
	if p, err := optionsPointer(o); err == nil && p != nil {
		_ = status(C.fbort_cancel_load(p))
	}
}

func runConfig(o *C.OrtRunOptions, key, value string) error {
	k, v := C.CString(key), C.CString(value)
	defer C.free(unsafe.Pointer(k))
	defer C.free(unsafe.Pointer(v))
	return status(C.fbort_run_config(o, k, v))
}

func endProfiling(s *C.OrtSession) (string, error) {
	var p *C.char
	if err := status(C.fbort_end_profiling(s, &p)); err != nil {
		return "", err
	}
	defer C.fbort_free(unsafe.Pointer(p))
	return C.GoString(p), nil
}

// sessionIO reads the inputs and outputs of a session.
func sessionIO(s *C.OrtSession) (in, out []engine.IO, err error) {
	var nIn, nOut C.size_t
	if err := status(C.fbort_io_count(s, &nIn, &nOut)); err != nil {
		return nil, nil, err
	}
	for i := C.size_t(0); i < nIn; i++ {
		x, err := oneIO(s, 0, i)
		if err != nil {
			return nil, nil, err
		}
		in = append(in, x)
	}
	for i := C.size_t(0); i < nOut; i++ {
		x, err := oneIO(s, 1, i)
		if err != nil {
			return nil, nil, err
		}
		out = append(out, x)
	}
	return in, out, nil
}

func oneIO(s *C.OrtSession, output C.int, i C.size_t) (engine.IO, error) {
	side := "input"
	if output != 0 {
		side = "output"
	}
	var c C.fbort_io
	err := status(C.fbort_io_get(s, output, i, &c))
	defer C.fbort_io_clear(&c)
	if err != nil {
		return engine.IO{}, err
	}
	x := engine.IO{Name: C.GoString(c.name), Type: tensor.DType(c._type)}
	if c.kind != C.FBORT_TENSOR {
		return x, fmt.Errorf("%s %q is a %s, only tensors can be passed: take it off the model's %ss", side, x.Name, onnxTypeName(int(c.onnx_type)), side)
	}
	if !passable(x.Type) {
		return x, fmt.Errorf("%s %q has element type %v, which cannot be passed; convert it with a Cast", side, x.Name, x.Type)
	}
	if c.rank > tensor.MaxRank {
		return x, fmt.Errorf("%s %q has more than %d dimensions", side, x.Name, tensor.MaxRank)
	}
	if c.rank < 0 {
		return x, nil
	}
	x.Dims, x.DimNames = make([]int64, c.rank), make([]string, c.rank)
	for d := range x.Dims {
		x.Dims[d] = max(int64(c.dims[d]), -1)
		if c.dim_names[d] != nil {
			x.DimNames[d] = C.GoString(c.dim_names[d])
		}
	}
	return x, nil
}

func onnxTypeName(t int) string {
	names := []string{"value of unknown type", "tensor", "sequence", "map", "opaque value", "sparse tensor", "optional non-tensor"}
	if t < 0 || t >= len(names) {
		t = 0
	}
	return names[t]
}

// passable reports whether tensors of type d go in and out of a session:
// ONNX Runtime has no complex tensors, and tensors of packed sub-byte types
// count their elements differently from one version to the next.
func passable(d tensor.DType) bool {
	switch d {
	case tensor.Complex64, tensor.Complex128:
		return false
	case tensor.String:
		return true
	}
	return d.Bits() >= 8
}
