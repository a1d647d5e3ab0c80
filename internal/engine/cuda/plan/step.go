package plan

// Type is a device element type, numbered as FB_F32 and its siblings in
// cuda/fewbit_cuda.h.
type Type uint8

// The device types.
const (
	F32 Type = iota
	F16
	BF16
	S8
	U8
	S32
	S64
	U32
	Bool
)

// Size returns the bytes of one element.
func (t Type) Size() int64 { return [...]int64{4, 2, 2, 1, 1, 4, 8, 4, 1}[t] }

// Act is an activation of an epilogue, numbered as FB_ACT_NONE and its siblings.
type Act uint8

// The activations.
const (
	ActNone Act = iota
	ActRelu
	ActGelu
	ActGeluTanh
	ActQuickGelu
	ActSilu
	ActClip
)

// Arithmetic is how a product of floats multiplies, numbered as FB_PRODUCTS_FP32 and
// its siblings; sums are FP32 in each.
type Arithmetic uint8

// The arithmetics.
const (
	FP32 Arithmetic = iota // exact operands, by fma
	TF32                   // operands rounded to 10 bits behind the point, on tensor cores; FP32 before sm_80
	FP16                   // operands rounded to FP16, on tensor cores: past 65504 they are infinite
)

// Op is an elementwise operation or a reduction, numbered as in fewbit_cuda.h.
type Op uint8

// Binary operations (FB_ADD ...), unary ones (FB_ABS ...) and reductions
// (FB_REDUCE_SUM ...).
const (
	Add Op = iota
	Sub
	Mul
	Div
	Pow
	Min
	Max
	Equal
	Less
	Greater
	And
	Or
)
const (
	Abs Op = iota + 32
	Neg
	Exp
	Log
	Sqrt
	Reciprocal
	Erf
	Tanh
	Sigmoid
	Not
	Floor
	Ceil
	Sin
	Cos
	HardSigmoid
	HardSwish
	LeakyRelu
)
const (
	ReduceSum Op = iota
	ReduceMean
	ReduceMax
	ReduceMin
	ReduceL2
)

// Ref is device memory: a buffer of the plan and an offset into it in bytes.
// The zero Ref is NULL.
type Ref struct {
	Buf    int
	Offset int64
}

// Rank is the largest rank of a View (FB_RANK).
const Rank = 6

// View is a strided tensor (fb_view): strides in elements, 0 broadcasts,
// negative ones read backwards.
type View struct {
	Dims, Strides []int64
}

// Step is one call of an entry of cuda/fewbit_cuda.h. Its concrete types below
// hold that entry's arguments under its names; operands are Refs tagged with
// how the entry uses them: r, w, and "w?" for an output that may be NULL when
// nothing reads it. Work is in a Workspace.
type Step interface {
	// Entry is the C function's name.
	Entry() string
}

// QuantizeRows is fb_quantize_rows.
type QuantizeRows struct {
	M, K, LdQ int64
	X         Ref `io:"r"`
	Divisor   Ref `io:"r"`
	Q         Ref `io:"w"`
	Scale     Ref `io:"w"`
	Zero      Ref `io:"w"`
}

// QuantizeTensor is fb_quantize_tensor. Zero is that of u8 codes.
type QuantizeTensor struct {
	M, K, LdQ int64
	Scale     float32
	Zero      int32
	X         Ref `io:"r"`
	Q         Ref `io:"w"`
}

// DequantizeTensor is fb_dequantize_tensor. Zero is that of s8 codes.
type DequantizeTensor struct {
	N     int64
	Scale float32
	Zero  int32
	Q     Ref `io:"r"`
	X     Ref `io:"w"`
}

// QuantizeToNHWC is fb_nchw_to_nhwc_s8. Zero is that of u8 codes.
type QuantizeToNHWC struct {
	N, C, HW, LdC int64
	Scale         float32
	Zero          int32
	X             Ref `io:"r"`
	Q             Ref `io:"w"`
}

// DequantizeToNCHW is fb_nhwc_s8_to_nchw. Zero is that of s8 codes.
type DequantizeToNCHW struct {
	N, C, HW, LdC int64
	Scale         float32
	Zero          int32
	Q             Ref `io:"r"`
	X             Ref `io:"w"`
}

// GemmS8 is fb_gemm_s8_run.
type GemmS8 struct {
	M, N, K, LdA, LdB, LdC int64
	Rows                   bool
	Act                    Act
	ActMin, ActMax         float32
	Out                    Type
	OutScale               float32
	OutZero                int32
	A                      Ref `io:"r"`
	AScale                 Ref `io:"r"`
	AZero                  Ref `io:"r"`
	B                      Ref `io:"r"`
	BScale                 Ref `io:"r"`
	BSum                   Ref `io:"r"`
	Bias                   Ref `io:"r"`
	Residual               Ref `io:"r"`
	C                      Ref `io:"w"`
	Work                   Ref `io:"w"`
	WorkBytes              int64
}

// W4Pack is fb_w4_pack: Packed has ceil(N/32) * 32 * K/2 bytes, PackedScale
// (K/Block + 1) * ceil(N/32) * 32 floats. It is run once, after the weights were uploaded.
type W4Pack struct {
	N, K        int64
	Block       int64
	Q           Ref `io:"r"`
	Scale       Ref `io:"r"`
	Packed      Ref `io:"w"`
	PackedScale Ref `io:"w"`
}

// GemmW4 is fb_gemm_w4_run. A is F16, or S8 with AScale and AZero.
type GemmW4 struct {
	M, N, K, LdA, LdC int64
	Block             int64
	AType             Type
	Act               Act
	ActMin, ActMax    float32
	A                 Ref `io:"r"`
	AScale            Ref `io:"r"`
	AZero             Ref `io:"r"`
	Packed            Ref `io:"r"`
	PackedScale       Ref `io:"r"`
	Bias              Ref `io:"r"`
	Residual          Ref `io:"r"`
	C                 Ref `io:"w"`
	Work              Ref `io:"w"`
	WorkBytes         int64
}

// GemmFloat is fb_gemm_float_run with C in F32. In is the type of A and B.
type GemmFloat struct {
	In                               Type
	TF32                             bool
	M, N, K, LdA, LdB, LdC           int64
	Batch, StrideA, StrideB, StrideC int64
	TransB                           bool
	Act                              Act
	ActMin, ActMax                   float32
	Alpha                            float32
	A                                Ref `io:"r"`
	B                                Ref `io:"r"`
	Bias                             Ref `io:"r"`
	Residual                         Ref `io:"r"`
	C                                Ref `io:"w"`
}

// Attention is fb_attention_run on F32 operands.
type Attention struct {
	Batch, Heads, QLen, KVLen      int64
	HeadDim, VDim                  int64
	QRow, KRow, VRow, ORow         int64
	QBatch, KBatch, VBatch, OBatch int64
	Scale                          float32
	Causal                         bool
	Scores                         Type
	MaskQ, MaskHeads               bool
	Q                              Ref `io:"r"`
	K                              Ref `io:"r"`
	V                              Ref `io:"r"`
	Mask                           Ref `io:"r"`
	KeyLengths                     Ref `io:"r"`
	Out                            Ref `io:"w"`
}

// Conv is the geometry of fb_conv_s8.
type Conv struct {
	N, H, W, C       int64
	OC, KH, KW       int64
	OH, OW           int64
	StrideH, StrideW int64
	PadH, PadW       int64
	DilH, DilW       int64
	Groups           int64
}

// ConvS8 is fb_conv_s8_run.
type ConvS8 struct {
	Conv
	XScale         float32
	XZero          int32
	Act            Act
	ActMin, ActMax float32
	Out            Type
	OutScale       float32
	OutZero        int32
	ResidualScale  float32
	ResidualZero   int32
	X              Ref `io:"r"`
	B              Ref `io:"r"`
	BScale         Ref `io:"r"`
	BSum           Ref `io:"r"`
	Bias           Ref `io:"r"`
	Residual       Ref `io:"r"`
	Y              Ref `io:"w"`
	Work           Ref `io:"w"`
	WorkBytes      int64
}

// ConvFloat is fb_conv_float, NCHW. B is F16 where Products is FP16.
type ConvFloat struct {
	Conv
	Products       Arithmetic
	Act            Act
	ActMin, ActMax float32
	X              Ref `io:"r"`
	B              Ref `io:"r"`
	Bias           Ref `io:"r"`
	Y              Ref `io:"w"`
}

// LayerNorm is fb_layer_norm.
type LayerNorm struct {
	M, K, LdQ int64
	Epsilon   float32
	X         Ref `io:"r"`
	Residual  Ref `io:"r"`
	Gamma     Ref `io:"r"`
	Beta      Ref `io:"r"`
	Divisor   Ref `io:"r"`
	Sum       Ref `io:"w?"`
	Y         Ref `io:"w?"`
	Q         Ref `io:"w?"`
	Scale     Ref `io:"w?"`
	Zero      Ref `io:"w?"`
}

// Softmax is fb_softmax over the last axis.
type Softmax struct {
	M, K int64
	X    Ref `io:"r"`
	Y    Ref `io:"w"`
}

// EmbedTable is one table of Embed. Block is that of 4 bits.
type EmbedTable struct {
	Count, IDsPeriod int64
	Bits, Block      int64
	Rows             Ref `io:"r"`
	Scale            Ref `io:"r"`
	IDs              Ref `io:"r"`
}

// Embed is fb_embed.
type Embed struct {
	Tokens, Dim int64
	Tables      []EmbedTable
	Out         Ref `io:"w"`
	Fault       Ref `io:"w"`
}

// Pool is the geometry of fb_pool.
type Pool struct {
	N, H, W, C       int64
	OH, OW, KH, KW   int64
	StrideH, StrideW int64
	PadH, PadW       int64
	PadHEnd, PadWEnd int64
	Average          bool
	CountIncludePad  bool
}

// PoolF32 is fb_pool_f32 on NCHW.
type PoolF32 struct {
	Pool
	X Ref `io:"r"`
	Y Ref `io:"w"`
}

// PoolS8 is fb_pool_s8 on NHWC.
type PoolS8 struct {
	Pool
	XScale float32
	XZero  int32
	YScale float32
	YZero  int32
	X      Ref `io:"r"`
	Y      Ref `io:"w"`
}

// GlobalAverage is fb_global_average_f32.
type GlobalAverage struct {
	N, C, HW int64
	NHWC     bool
	X        Ref `io:"r"`
	Y        Ref `io:"w"`
}

// MaskedMean is fb_masked_mean.
type MaskedMean struct {
	B, T, D int64
	X       Ref `io:"r"`
	Mask    Ref `io:"r"`
	Y       Ref `io:"w"`
}

// Binary is fb_binary. Comparisons, And and Or write Bool.
type Binary struct {
	Op          Op
	Type        Type
	Out, AV, BV View
	A           Ref `io:"r"`
	B           Ref `io:"r"`
	Y           Ref `io:"w"`
}

// Unary is fb_unary. Act says which activation when Op is 0. Not is of Bool.
type Unary struct {
	Op     Op
	Act    Act
	N      int64
	P0, P1 float32
	X      Ref `io:"r"`
	Y      Ref `io:"w"`
}

// Where is fb_where.
type Where struct {
	Size            int64
	Out, CV, AV, BV View
	Cond            Ref `io:"r"`
	A               Ref `io:"r"`
	B               Ref `io:"r"`
	Y               Ref `io:"w"`
}

// Copy is fb_copy.
type Copy struct {
	Size     int64
	Src, Dst View
	X        Ref `io:"r"`
	Y        Ref `io:"w"`
}

// Cast is fb_cast.
type Cast struct {
	From, To Type
	N        int64
	X        Ref `io:"r"`
	Y        Ref `io:"w"`
}

// Gather is fb_gather.
type Gather struct {
	Size, Outer, Axis, Inner, NIDs int64
	X                              Ref `io:"r"`
	IDs                            Ref `io:"r"`
	Y                              Ref `io:"w"`
	Fault                          Ref `io:"w"`
}

// Reduce is fb_reduce.
type Reduce struct {
	Op                 Op
	Outer, Axis, Inner int64
	X                  Ref `io:"r"`
	Y                  Ref `io:"w"`
}

// Entry implements Step.
func (*QuantizeRows) Entry() string     { return "fb_quantize_rows" }
func (*QuantizeTensor) Entry() string   { return "fb_quantize_tensor" }
func (*DequantizeTensor) Entry() string { return "fb_dequantize_tensor" }
func (*QuantizeToNHWC) Entry() string   { return "fb_nchw_to_nhwc_s8" }
func (*DequantizeToNCHW) Entry() string { return "fb_nhwc_s8_to_nchw" }
func (*GemmS8) Entry() string           { return "fb_gemm_s8_run" }
func (*W4Pack) Entry() string           { return "fb_w4_pack" }
func (*GemmW4) Entry() string           { return "fb_gemm_w4_run" }
func (*GemmFloat) Entry() string        { return "fb_gemm_float_run" }
func (*Attention) Entry() string        { return "fb_attention_run" }
func (*ConvS8) Entry() string           { return "fb_conv_s8_run" }
func (*ConvFloat) Entry() string        { return "fb_conv_float" }
func (*LayerNorm) Entry() string        { return "fb_layer_norm" }
func (*Softmax) Entry() string          { return "fb_softmax" }
func (*Embed) Entry() string            { return "fb_embed" }
func (*PoolF32) Entry() string          { return "fb_pool_f32" }
func (*PoolS8) Entry() string           { return "fb_pool_s8" }
func (*GlobalAverage) Entry() string    { return "fb_global_average_f32" }
func (*MaskedMean) Entry() string       { return "fb_masked_mean" }
func (*Binary) Entry() string           { return "fb_binary" }
func (*Unary) Entry() string            { return "fb_unary" }
func (*Where) Entry() string            { return "fb_where" }
func (*Copy) Entry() string             { return "fb_copy" }
func (*Cast) Entry() string             { return "fb_cast" }
func (*Gather) Entry() string           { return "fb_gather" }
func (*Reduce) Entry() string           { return "fb_reduce" }
