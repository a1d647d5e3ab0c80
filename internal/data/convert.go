package data

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/fewbit/fewbit/internal/tensor"
)

// converter turns the elements of one row into those of the model's input.
// dst and src hold the same number of elements.
type converter func(dst, src []byte) error

// conversion returns how elements of type from become elements of type to:
// nil with ok for equal types.
func conversion(from, to tensor.DType) (c converter, ok bool) {
	switch {
	case from == to:
		return nil, true
	case isInteger(from) && isInteger(to) && to != tensor.Bool:
		return integers(from, to), true
	case isFloat(from) && isFloat(to):
		return floats(from, to), true
	}
	return nil, false
}

func isInteger(d tensor.DType) bool {
	switch d {
	case tensor.Bool, tensor.Int8, tensor.Int16, tensor.Int32, tensor.Int64, tensor.Uint8, tensor.Uint16, tensor.Uint32, tensor.Uint64:
		return true
	}
	return false
}

func isFloat(d tensor.DType) bool {
	return d == tensor.Float16 || d == tensor.Float32 || d == tensor.Float64
}

// integers converts integers, refusing values that do not fit.
func integers(from, to tensor.DType) converter {
	fs, ts := from.Bits()/8, to.Bits()/8
	lo, hi := integerRange(to)
	return func(dst, src []byte) error {
		for i := 0; i*fs < len(src); i++ {
			v, ok := integerAt(from, src[i*fs:])
			if !ok || v < lo || v > hi {
				return fmt.Errorf("%w: element %d does not fit into %v", ErrMismatch, i, to)
			}
			var b [8]byte
			binary.LittleEndian.PutUint64(b[:], uint64(v))
			copy(dst[i*ts:(i+1)*ts], b[:])
		}
		return nil
	}
}

// integerRange returns the values of d that an int64 can hold.
func integerRange(d tensor.DType) (lo, hi int64) {
	bits := d.Bits()
	switch d {
	case tensor.Uint8, tensor.Uint16, tensor.Uint32:
		return 0, 1<<bits - 1
	case tensor.Uint64:
		return 0, math.MaxInt64
	}
	return -1 << (bits - 1), 1<<(bits-1) - 1
}

// integerAt reads the first element of b; false when an unsigned one is past
// the range of int64.
func integerAt(d tensor.DType, b []byte) (int64, bool) {
	switch d {
	case tensor.Bool:
		if b[0] != 0 {
			return 1, true
		}
		return 0, true
	case tensor.Uint8:
		return int64(b[0]), true
	case tensor.Int8:
		return int64(int8(b[0])), true
	case tensor.Int16:
		return int64(int16(binary.LittleEndian.Uint16(b))), true
	case tensor.Uint16:
		return int64(binary.LittleEndian.Uint16(b)), true
	case tensor.Int32:
		return int64(int32(binary.LittleEndian.Uint32(b))), true
	case tensor.Uint32:
		return int64(binary.LittleEndian.Uint32(b)), true
	}
	v := binary.LittleEndian.Uint64(b)
	return int64(v), d == tensor.Int64 || v <= math.MaxInt64
}

// floats rounds to nearest even; values past the range become infinities,
// which the receipt of a calibration counts.
func floats(from, to tensor.DType) converter {
	fs, ts := from.Bits()/8, to.Bits()/8
	return func(dst, src []byte) error {
		for i := 0; i*fs < len(src); i++ {
			s, d := src[i*fs:], dst[i*ts:]
			var v float64
			switch from {
			case tensor.Float16:
				v = float64(tensor.F16ToF32(binary.LittleEndian.Uint16(s)))
			case tensor.Float32:
				v = float64(math.Float32frombits(binary.LittleEndian.Uint32(s)))
			default:
				v = math.Float64frombits(binary.LittleEndian.Uint64(s))
			}
			switch to {
			case tensor.Float16:
				binary.LittleEndian.PutUint16(d, tensor.F32ToF16(float32(v)))
			case tensor.Float32:
				binary.LittleEndian.PutUint32(d, math.Float32bits(float32(v)))
			default:
				binary.LittleEndian.PutUint64(d, math.Float64bits(v))
			}
		}
		return nil
	}
}
