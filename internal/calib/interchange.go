package calib

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"sort"
	"strconv"
	"strings"
	"unicode"
)

// TensorRTHeader is the first line of a calibration cache of TensorRT 8.5 for
// the entropy calibrator 2, which the ONNX parser's builder accepts.
const TensorRTHeader = "TRT-8501-EntropyCalibration2"

// tensorRTSteps is the number of positive codes of TensorRT's symmetric INT8.
const tensorRTSteps = 127

// Limits of a TensorRT calibration cache that ParseTensorRT accepts.
const (
	MaxCacheLine  = 2*MaxNameBytes + 16
	MaxCacheBytes = 64 << 20
)

// WriteTensorRT writes ranges as a TensorRT calibration cache: the header, then
// "name: hhhhhhhh" a line, sorted, with the big-endian IEEE 754 bits of the
// FP32 scale max|x|/127. An empty range gets the scale of 1.0/127, since
// TensorRT refuses 0.
func WriteTensorRT(w io.Writer, ranges map[string]Range) error {
	b := bufio.NewWriter(w)
	fmt.Fprintln(b, TensorRTHeader)
	for _, name := range sortedNames(ranges) {
		if err := checkName(name, false); err != nil {
			return err
		}
		a := ranges[name].AbsMax()
		if a == 0 {
			a = 1
		}
		fmt.Fprintf(b, "%s: %08x\n", name, math.Float32bits(max(a/tensorRTSteps, minScale)))
	}
	return b.Flush()
}

// ParseTensorRT reads a TensorRT calibration cache and returns the scale of
// each tensor. Lines are split on the last ": ", because names may contain it.
// The header is any that starts with "TRT-". ErrTable says which line is bad.
func ParseTensorRT(r io.Reader) (map[string]float32, error) {
	limited := &io.LimitedReader{R: r, N: MaxCacheBytes + 1}
	sc := bufio.NewScanner(limited)
	sc.Buffer(make([]byte, 0, 4096), MaxCacheLine)
	scales := map[string]float32{}
	line := 0
	bad := func(format string, a ...any) error {
		return fmt.Errorf("%w: TensorRT cache, line %d: %s", ErrTable, line, fmt.Sprintf(format, a...))
	}
	for sc.Scan() {
		text := strings.TrimSuffix(sc.Text(), "\r")
		if line++; line == 1 {
			if !strings.HasPrefix(text, "TRT-") {
				return nil, bad("%.40q, expected a header such as %s", text, TensorRTHeader)
			}
			continue
		}
		if text == "" {
			continue
		}
		i := strings.LastIndex(text, ": ")
		if i < 1 {
			return nil, bad("%.80q, expected name: scale", text)
		}
		name, digits := text[:i], text[i+2:]
		v, err := strconv.ParseUint(digits, 16, 32)
		if scale := math.Float32frombits(uint32(v)); err != nil || len(digits) != 8 || !(scale > 0 && scale <= math.MaxFloat32) {
			return nil, bad("scale %.40q, expected the 8 hexadecimal digits of a positive float", digits)
		}
		if _, twice := scales[name]; twice {
			return nil, bad("tensor %.80q stands there twice", name)
		}
		if len(scales) == MaxTensors {
			return nil, bad("more than %d tensors", MaxTensors)
		}
		scales[name] = math.Float32frombits(uint32(v))
	}
	line++
	if err := sc.Err(); err != nil {
		return nil, bad("%v", err)
	}
	if limited.N <= 0 {
		return nil, bad("longer than %d MiB", MaxCacheBytes>>20)
	}
	if line == 1 {
		return nil, bad("the file is empty, expected a header such as %s", TensorRTHeader)
	}
	return scales, nil
}

// WriteORT writes ranges as ONNX Runtime's calibration.cache text: "name value"
// a line, sorted, the value max|x| in decimal. (ONNX Runtime's own tool writes
// max(lowest, highest), which loses a larger negative end.) Its reader splits
// at white space, so a name with a space is refused.
func WriteORT(w io.Writer, ranges map[string]Range) error {
	b := bufio.NewWriter(w)
	for _, name := range sortedNames(ranges) {
		if err := checkName(name, true); err != nil {
			return err
		}
		fmt.Fprintf(b, "%s %s\n", name, strconv.FormatFloat(float64(ranges[name].AbsMax()), 'g', -1, 32))
	}
	return b.Flush()
}

func checkName(name string, spaces bool) error {
	for _, r := range name {
		if unicode.IsControl(r) || spaces && unicode.IsSpace(r) {
			return fmt.Errorf("%w: the cache format cannot hold the tensor name %q: rename the tensor", ErrTable, name)
		}
	}
	if name == "" || len(name) > MaxNameBytes {
		return fmt.Errorf("%w: a tensor name of %d bytes, expected 1 to %d", ErrTable, len(name), MaxNameBytes)
	}
	return nil
}

func sortedNames(ranges map[string]Range) []string {
	names := make([]string, 0, len(ranges))
	for n := range ranges {
		names = append(names, n)
	}
	sort.Strings(names)
	return names
}
