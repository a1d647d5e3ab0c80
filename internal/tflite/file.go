package tflite

import (
	"fmt"
	"math"

	flatbuffers "github.com/google/flatbuffers/go"
)

// The numbers in this file are those of TensorFlow Lite's schema.fbs, version 3:
// slots of its tables and values of its enumerations, under their names there.

// fileIdentifier and schemaVersion mark the format.
const (
	fileIdentifier = "TFL3"
	schemaVersion  = 3
)

// MaxBytes is what a FlatBuffer can hold: its offsets are 32 bits with a sign.
const MaxBytes = math.MaxInt32 - 64<<20

// dtype is TensorType.
type dtype int8

const (
	float32Type dtype = 0
	float16Type dtype = 1
	int32Type   dtype = 2
	int64Type   dtype = 4
	int16Type   dtype = 7
	int8Type    dtype = 9
)

// typeNames are what ports may be.
var typeNames = map[dtype]string{float32Type: "float32", int16Type: "int16", int8Type: "int8"}

// size returns the bytes of an element.
func (d dtype) size() int64 {
	switch d {
	case int8Type:
		return 1
	case float16Type, int16Type:
		return 2
	case int64Type:
		return 8
	}
	return 4
}

// opcode is BuiltinOperator.
type opcode int32

const (
	opAdd             opcode = 0
	opAveragePool     opcode = 1
	opConcatenation   opcode = 2
	opConv2D          opcode = 3
	opDepthwiseConv2D opcode = 4
	opDequantize      opcode = 6
	opFullyConnected  opcode = 9
	opLogistic        opcode = 14
	opMaxPool         opcode = 17
	opMul             opcode = 18
	opRelu            opcode = 19
	opRelu6           opcode = 21
	opReshape         opcode = 22
	opSoftmax         opcode = 25
	opTanh            opcode = 28
	opPad             opcode = 34
	opResizeBilinear  opcode = 23
	opTranspose       opcode = 39
	opMean            opcode = 40
	opSub             opcode = 41
	opDiv             opcode = 42
	opMaximum         opcode = 55
	opMinimum         opcode = 57
	opPadV2           opcode = 60
	opSlice           opcode = 65
	opResizeNearest   opcode = 97
	opLeakyRelu       opcode = 98
	opQuantize        opcode = 114
	opHardSwish       opcode = 117
)

var opNames = map[opcode]string{
	opAdd: "ADD", opAveragePool: "AVERAGE_POOL_2D", opConcatenation: "CONCATENATION", opConv2D: "CONV_2D",
	opDepthwiseConv2D: "DEPTHWISE_CONV_2D", opDequantize: "DEQUANTIZE", opFullyConnected: "FULLY_CONNECTED",
	opLogistic: "LOGISTIC", opMaxPool: "MAX_POOL_2D", opMul: "MUL", opRelu: "RELU", opRelu6: "RELU6", opReshape: "RESHAPE",
	opSoftmax: "SOFTMAX", opTanh: "TANH", opPad: "PAD", opTranspose: "TRANSPOSE", opMean: "MEAN", opSub: "SUB", opDiv: "DIV",
	opMaximum: "MAXIMUM", opMinimum: "MINIMUM", opPadV2: "PADV2", opSlice: "SLICE", opQuantize: "QUANTIZE", opHardSwish: "HARD_SWISH",
	opResizeBilinear: "RESIZE_BILINEAR", opResizeNearest: "RESIZE_NEAREST_NEIGHBOR", opLeakyRelu: "LEAKY_RELU",
}

func (c opcode) String() string { return opNames[c] }

// version is the version of an operator that first took what we write: the
// lowest that old interpreters need (tools/versioning/op_version.cc).
func (c opcode) version(in []*tensorDef) int32 {
	integer := len(in) > 0 && in[0].typ == int8Type
	perChannel := func(i int) bool { return len(in) > i && in[i].quant != nil && len(in[i].quant.scale) > 1 }
	if v, ok := wideVersions[c]; ok && len(in) > 0 && (in[0].typ == int16Type || in[0].typ == float16Type) {
		if c == opFullyConnected && perChannel(1) {
			return 12
		}
		return v
	}
	switch {
	case c == opConv2D && len(in) > 1 && in[0].shape[3] != in[1].shape[3]: // in groups
		return 6
	case c == opFullyConnected && integer && perChannel(1):
		return 12
	case c == opDequantize && perChannel(0):
		return 5
	case (c == opConv2D || c == opDepthwiseConv2D) && integer:
		return 3
	case c == opFullyConnected && integer:
		return 4
	case c == opResizeBilinear || c == opResizeNearest: // with half_pixel_centers
		return 3
	case c == opReshape, c == opQuantize && !integer, c == opHardSwish:
		return 1
	case integer:
		return 2
	}
	return 1
}

// wideVersions are those that first took int16, and float16 where that is dequantized.
var wideVersions = map[opcode]int32{
	opAdd: 3, opAveragePool: 3, opConcatenation: 3, opConv2D: 4, opDepthwiseConv2D: 5, opDequantize: 3, opFullyConnected: 7, opLeakyRelu: 2, opLogistic: 3,
	opMaxPool: 3, opMean: 3, opMul: 4, opPad: 3, opPadV2: 3, opQuantize: 2, opResizeBilinear: 4, opResizeNearest: 4, opSlice: 4, opSoftmax: 3, opSub: 5, opTanh: 3,
}

// activation is ActivationFunctionType.
type activation int8

const (
	actNone  activation = 0
	actRelu  activation = 1
	actRelu6 activation = 3
)

// padding is Padding.
type padding int8

const (
	padSame  padding = 0
	padValid padding = 1
)

// options is a member of the union BuiltinOptions: what writes the table.
type options struct {
	kind  byte
	write func(b *flatbuffers.Builder) flatbuffers.UOffsetT
}

// table starts a table of n slots and ends it after fill.
func table(b *flatbuffers.Builder, n int, fill func()) flatbuffers.UOffsetT {
	b.StartObject(n)
	fill()
	return b.EndObject()
}

// only makes options that are one activation in slot 0.
func only(kind byte, slots int, act activation) options {
	return options{kind, func(b *flatbuffers.Builder) flatbuffers.UOffsetT {
		return table(b, slots, func() { b.PrependInt8Slot(0, int8(act), 0) })
	}}
}

func empty(kind byte) options {
	return options{kind, func(b *flatbuffers.Builder) flatbuffers.UOffsetT { return table(b, 0, func() {}) }}
}

func addOptions(a activation) options { return only(11, 2, a) }
func mulOptions(a activation) options { return only(21, 1, a) }
func subOptions(a activation) options { return only(28, 2, a) }
func divOptions() options             { return only(29, 1, actNone) }

// window is what convolutions and pools share, height before width.
type window struct {
	pad                      padding
	stride, dilation, kernel [2]int32
	act                      activation
}

func convOptions(w window) options {
	return options{1, func(b *flatbuffers.Builder) flatbuffers.UOffsetT {
		return table(b, 7, func() {
			b.PrependInt8Slot(0, int8(w.pad), 0)
			b.PrependInt32Slot(1, w.stride[1], 0)
			b.PrependInt32Slot(2, w.stride[0], 0)
			b.PrependInt8Slot(3, int8(w.act), 0)
			b.PrependInt32Slot(4, w.dilation[1], 1)
			b.PrependInt32Slot(5, w.dilation[0], 1)
		})
	}}
}

func depthwiseOptions(w window, multiplier int32) options {
	return options{2, func(b *flatbuffers.Builder) flatbuffers.UOffsetT {
		return table(b, 7, func() {
			b.PrependInt8Slot(0, int8(w.pad), 0)
			b.PrependInt32Slot(1, w.stride[1], 0)
			b.PrependInt32Slot(2, w.stride[0], 0)
			b.PrependInt32Slot(3, multiplier, 0)
			b.PrependInt8Slot(4, int8(w.act), 0)
			b.PrependInt32Slot(5, w.dilation[1], 1)
			b.PrependInt32Slot(6, w.dilation[0], 1)
		})
	}}
}

func poolOptions(w window) options {
	return options{5, func(b *flatbuffers.Builder) flatbuffers.UOffsetT {
		return table(b, 6, func() {
			b.PrependInt8Slot(0, int8(w.pad), 0)
			b.PrependInt32Slot(1, w.stride[1], 0)
			b.PrependInt32Slot(2, w.stride[0], 0)
			b.PrependInt32Slot(3, w.kernel[1], 0)
			b.PrependInt32Slot(4, w.kernel[0], 0)
			b.PrependInt8Slot(5, int8(w.act), 0)
		})
	}}
}

func fullyConnectedOptions(a activation, keepDims bool) options {
	return options{8, func(b *flatbuffers.Builder) flatbuffers.UOffsetT {
		return table(b, 5, func() {
			b.PrependInt8Slot(0, int8(a), 0)
			b.PrependBoolSlot(2, keepDims, false)
		})
	}}
}

func softmaxOptions() options {
	return options{9, func(b *flatbuffers.Builder) flatbuffers.UOffsetT {
		return table(b, 1, func() { b.PrependFloat32Slot(0, 1, 0) })
	}}
}

func concatOptions(axis int32) options {
	return options{10, func(b *flatbuffers.Builder) flatbuffers.UOffsetT {
		return table(b, 2, func() { b.PrependInt32Slot(0, axis, 0) })
	}}
}

func reduceOptions(keepDims bool) options {
	return options{27, func(b *flatbuffers.Builder) flatbuffers.UOffsetT {
		return table(b, 1, func() { b.PrependBoolSlot(0, keepDims, false) })
	}}
}

// quantization says that a value is scale*(q - zero); several scales are one for
// each slice along axis, with zero points of 0.
type quantization struct {
	scale []float32
	zero  int64
	axis  int32
	// wide: of an activation, the codes have 16 bits, and zero is 0.
	wide bool
}

// same reports whether two activations have the same type, scale and zero point.
func (q *quantization) same(o *quantization) bool {
	return q.scale[0] == o.scale[0] && q.zero == o.zero && q.wide == o.wide
}

// typ is the type of an activation's codes.
func (q *quantization) typ() dtype {
	if q.wide {
		return int16Type
	}
	return int8Type
}

// ends are the numbers that the first and the last code of an activation stand for.
func (q *quantization) ends() (lo, hi float64) {
	first, last := int64(math.MinInt8), int64(math.MaxInt8)
	if q.wide {
		first, last = math.MinInt16, math.MaxInt16
	}
	return float64(q.scale[0]) * float64(first-q.zero), float64(q.scale[0]) * float64(last-q.zero)
}

// tensorDef is a value of the file. Its data are nil unless it is a constant.
type tensorDef struct {
	name  string
	typ   dtype
	shape []int32
	// batched says that dimension 0 is the batch, which whoever runs it chooses.
	batched bool
	quant   *quantization
	data    []byte
}

func (t *tensorDef) elems() int64 {
	n := int64(1)
	for _, d := range t.shape {
		n *= int64(d)
	}
	return n
}

// operator applies code to tensors, by index; -1 is an omitted input.
type operator struct {
	code    opcode
	in, out []int32
	options options
}

// program is a file before it is written.
type program struct {
	description     string
	tensors         []*tensorDef
	ops             []operator
	inputs, outputs []int32
}

func (p *program) defs(ids []int32) []*tensorDef {
	var d []*tensorDef
	for _, i := range ids {
		if i >= 0 {
			d = append(d, p.tensors[i])
		}
	}
	return d
}

// vector writes elements of a fixed size, the last one first, as FlatBuffers go.
func vector[T any](b *flatbuffers.Builder, v []T, size int, prepend func(T)) flatbuffers.UOffsetT {
	b.StartVector(size, len(v), size)
	for i := len(v) - 1; i >= 0; i-- {
		prepend(v[i])
	}
	return b.EndVector(len(v))
}

func offsets(b *flatbuffers.Builder, v []flatbuffers.UOffsetT) flatbuffers.UOffsetT {
	return vector(b, v, flatbuffers.SizeUOffsetT, b.PrependUOffsetT)
}

// bufferAlign is what kernels that map weights expect of their address.
const bufferAlign = 16

// encode writes the program as a FlatBuffer.
func (p *program) encode() ([]byte, error) {
	size := int64(1 << 16)
	for _, t := range p.tensors {
		size += int64(len(t.data)) + int64(len(t.name)) + 512
		if t.quant != nil {
			size += 12 * int64(len(t.quant.scale))
		}
	}
	if size += 512 * int64(len(p.ops)); size > MaxBytes {
		return nil, fmt.Errorf("%w: %d MB, and the format ends at %d MB", ErrUnsupported, size>>20, MaxBytes>>20)
	}
	b := flatbuffers.NewBuilder(int(size))

	// Buffer 0 is the empty one, of every tensor that is computed.
	buffers := []flatbuffers.UOffsetT{table(b, 3, func() {})}
	var tensors []flatbuffers.UOffsetT
	for _, t := range p.tensors {
		buffer := uint32(0)
		if t.data != nil {
			b.StartVector(1, len(t.data), bufferAlign)
			for i := len(t.data) - 1; i >= 0; i-- {
				b.PlaceByte(t.data[i])
			}
			v := b.EndVector(len(t.data))
			buffer = uint32(len(buffers))
			buffers = append(buffers, table(b, 3, func() { b.PrependUOffsetTSlot(0, v, 0) }))
		}
		tensors = append(tensors, t.encode(b, buffer))
	}

	codes := map[[2]int32]uint32{}
	var codeTables, ops []flatbuffers.UOffsetT
	for _, o := range p.ops {
		key := [2]int32{int32(o.code), o.code.version(p.defs(o.in))}
		code, ok := codes[key]
		if !ok {
			code = uint32(len(codes))
			codes[key] = code
			codeTables = append(codeTables, table(b, 4, func() {
				b.PrependInt8Slot(0, int8(min(key[0], math.MaxInt8)), 0) // what readers of older schemas look at
				b.PrependInt32Slot(2, key[1], 1)
				b.PrependInt32Slot(3, key[0], 0)
			}))
		}
		in := vector(b, o.in, 4, b.PrependInt32)
		out := vector(b, o.out, 4, b.PrependInt32)
		var opt flatbuffers.UOffsetT
		if o.options.write != nil {
			opt = o.options.write(b)
		}
		ops = append(ops, table(b, 14, func() {
			b.PrependUint32Slot(0, code, 0)
			b.PrependUOffsetTSlot(1, in, 0)
			b.PrependUOffsetTSlot(2, out, 0)
			b.PrependUint8Slot(3, o.options.kind, 0)
			b.PrependUOffsetTSlot(4, opt, 0)
		}))
	}

	tv, iv, ov := offsets(b, tensors), vector(b, p.inputs, 4, b.PrependInt32), vector(b, p.outputs, 4, b.PrependInt32)
	opv, name := offsets(b, ops), b.CreateString("main")
	graph := table(b, 6, func() {
		b.PrependUOffsetTSlot(0, tv, 0)
		b.PrependUOffsetTSlot(1, iv, 0)
		b.PrependUOffsetTSlot(2, ov, 0)
		b.PrependUOffsetTSlot(3, opv, 0)
		b.PrependUOffsetTSlot(4, name, 0)
	})
	in, out := p.maps(b, p.inputs), p.maps(b, p.outputs)
	key := b.CreateString("serving_default") // the name that converters give the only signature
	signature := table(b, 5, func() {
		b.PrependUOffsetTSlot(0, in, 0)
		b.PrependUOffsetTSlot(1, out, 0)
		b.PrependUOffsetTSlot(2, key, 0)
	})
	cv, gv := offsets(b, codeTables), offsets(b, []flatbuffers.UOffsetT{graph})
	bv, sv := offsets(b, buffers), offsets(b, []flatbuffers.UOffsetT{signature})
	description := b.CreateString(p.description)
	model := table(b, 8, func() {
		b.PrependUint32Slot(0, schemaVersion, 0)
		b.PrependUOffsetTSlot(1, cv, 0)
		b.PrependUOffsetTSlot(2, gv, 0)
		b.PrependUOffsetTSlot(3, description, 0)
		b.PrependUOffsetTSlot(4, bv, 0)
		b.PrependUOffsetTSlot(7, sv, 0)
	})
	b.FinishWithFileIdentifier(model, []byte(fileIdentifier))
	return b.FinishedBytes(), nil
}

// maps names tensors in a signature.
func (p *program) maps(b *flatbuffers.Builder, ids []int32) flatbuffers.UOffsetT {
	var v []flatbuffers.UOffsetT
	for _, i := range ids {
		name := b.CreateString(p.tensors[i].name)
		v = append(v, table(b, 2, func() {
			b.PrependUOffsetTSlot(0, name, 0)
			b.PrependUint32Slot(1, uint32(i), 0)
		}))
	}
	return offsets(b, v)
}

func (t *tensorDef) encode(b *flatbuffers.Builder, buffer uint32) flatbuffers.UOffsetT {
	name := b.CreateString(t.name)
	shape := vector(b, t.shape, 4, b.PrependInt32)
	var signature, quant flatbuffers.UOffsetT
	if t.batched {
		signature = vector(b, append([]int32{-1}, t.shape[1:]...), 4, b.PrependInt32)
	}
	if q := t.quant; q != nil {
		scale := vector(b, q.scale, 4, b.PrependFloat32)
		zeros := make([]int64, len(q.scale))
		for i := range zeros {
			zeros[i] = q.zero
		}
		zero := vector(b, zeros, 8, b.PrependInt64)
		quant = table(b, 7, func() {
			b.PrependUOffsetTSlot(2, scale, 0)
			b.PrependUOffsetTSlot(3, zero, 0)
			b.PrependInt32Slot(6, q.axis, 0)
		})
	}
	return table(b, 10, func() {
		b.PrependUOffsetTSlot(0, shape, 0)
		b.PrependInt8Slot(1, int8(t.typ), 0)
		b.PrependUint32Slot(2, buffer, 0)
		b.PrependUOffsetTSlot(3, name, 0)
		b.PrependUOffsetTSlot(4, quant, 0)
		b.PrependUOffsetTSlot(7, signature, 0)
		b.PrependBoolSlot(8, true, false)
	})
}
