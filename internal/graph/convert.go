package graph

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"sort"

	"github.com/fewbit/fewbit/internal/onnx"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/tensor"
	"google.golang.org/protobuf/proto"
)

// ErrInvalid: the model breaks a rule of the ONNX specification.
var ErrInvalid = errors.New("invalid model")

// Open maps the ONNX model at path and checks it.
func Open(path string) (*Model, error) {
	f, err := onnx.Open(path)
	if err != nil {
		return nil, err
	}
	m, err := FromProto(f.Proto)
	if err == nil {
		err = m.Check()
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	m.close, m.unload, m.Bytes = f.Close, f.Unload, f.Bytes
	return m, nil
}

// Save writes the model (see onnx.Save).
func (m *Model) Save(path string, o onnx.SaveOptions) error {
	p, err := m.Proto()
	if err != nil {
		return err
	}
	return onnx.Save(path, p, o)
}

// FromProto builds a Model whose tensors alias p.
func FromProto(p *pb.ModelProto) (*Model, error) {
	if p.GetGraph() == nil {
		return nil, fmt.Errorf("%w: no graph", ErrInvalid)
	}
	m := &Model{IR: p.GetIrVersion(), Opsets: map[string]int64{}, Metadata: map[string]string{}, shell: p, functions: functionsOf(p)}
	for _, o := range p.OpsetImport {
		m.Opsets[domain(o.GetDomain())] = o.GetVersion()
	}
	for _, e := range p.MetadataProps {
		m.Metadata[e.GetKey()] = e.GetValue()
	}
	pg := p.Graph
	g := &Graph{Name: pg.GetName(), Info: map[string]*Value{}, inits: map[string]*tensor.Tensor{}, shell: pg}
	for _, t := range pg.Initializer {
		v, err := TensorFromProto(t)
		if err != nil {
			return nil, fmt.Errorf("%w: initializer %q: %v", ErrInvalid, t.GetName(), err)
		}
		if t.GetName() == "" || g.inits[t.GetName()] != nil {
			return nil, fmt.Errorf("%w: initializer name %q is empty or used twice", ErrInvalid, t.GetName())
		}
		g.SetInit(t.GetName(), v)
	}
	for _, v := range pg.Input {
		// Before IR 4 every initializer was listed as an input too. Since, such
		// an input has a default that a caller may override; to fewbit it is
		// a constant like the others.
		if g.inits[v.GetName()] == nil {
			g.Inputs = append(g.Inputs, valueFrom(v))
		}
	}
	for _, v := range pg.Output {
		g.Outputs = append(g.Outputs, valueFrom(v))
	}
	for _, v := range pg.ValueInfo {
		g.Info[v.GetName()] = valueFrom(v)
	}
	for _, n := range pg.Node {
		g.Nodes = append(g.Nodes, &Node{
			Name: n.GetName(), Op: n.GetOpType(), Domain: domain(n.GetDomain()),
			Inputs: n.Input, Outputs: n.Output, Attrs: n.Attribute, shell: n,
		})
	}
	nameNodes(g.Nodes)
	m.Graph = g
	return m, nil
}

// nameNodes gives those nodes of a graph that have no name that of their first output: rules, reports
// and recipes tell operators apart by name, which ONNX does not ask for.
func nameNodes(nodes []*Node) {
	used := make(map[string]bool, len(nodes))
	for _, n := range nodes {
		used[n.Name] = true
	}
	next := map[string]int{} // number behind a name that is used: a file may repeat one
	for _, n := range nodes {
		if n.Name != "" || len(n.Outputs) == 0 || n.Outputs[0] == "" {
			continue
		}
		name := n.Outputs[0]
		for used[name] {
			next[n.Outputs[0]]++
			name = fmt.Sprintf("%s_%d", n.Outputs[0], next[n.Outputs[0]])
		}
		n.Name, used[name] = name, true
	}
}

func domain(d string) string {
	if d == "ai.onnx" {
		return DomainONNX
	}
	return d
}

// minIR is the first IR version in which initializers need not be inputs.
const minIR = 4

// Proto builds the protobuf form. Tensor bytes are shared, nothing is copied.
func (m *Model) Proto() (*pb.ModelProto, error) {
	p := &pb.ModelProto{}
	if m.shell != nil {
		p = cloneShell(m.shell)
	}
	p.IrVersion = proto.Int64(max(m.IR, minIR))
	p.OpsetImport = nil
	for _, d := range sortedKeys(m.Opsets) {
		p.OpsetImport = append(p.OpsetImport, &pb.OperatorSetIdProto{Domain: proto.String(d), Version: proto.Int64(m.Opsets[d])})
	}
	p.MetadataProps = nil
	for _, k := range sortedKeys(m.Metadata) {
		p.MetadataProps = append(p.MetadataProps, &pb.StringStringEntryProto{Key: proto.String(k), Value: proto.String(m.Metadata[k])})
	}
	g := m.Graph
	pg := &pb.GraphProto{Name: proto.String(g.Name)}
	if g.shell != nil {
		pg.DocString, pg.MetadataProps = g.shell.DocString, g.shell.MetadataProps
		pg.SparseInitializer, pg.QuantizationAnnotation = g.shell.SparseInitializer, g.shell.QuantizationAnnotation
		keepUnknown(pg, g.shell)
	}
	for _, v := range g.Inputs {
		pg.Input = append(pg.Input, v.toProto())
	}
	for _, v := range g.Outputs {
		pg.Output = append(pg.Output, v.toProto())
	}
	made := map[string]bool{}
	for _, n := range g.Nodes {
		pn := &pb.NodeProto{OpType: proto.String(n.Op), Input: n.Inputs, Output: n.Outputs, Attribute: n.Attrs}
		if n.shell != nil {
			keepShell(pn, n.shell)
		}
		if n.Name != "" {
			pn.Name = proto.String(n.Name)
		}
		if n.Domain != "" {
			pn.Domain = proto.String(n.Domain)
		}
		pg.Node = append(pg.Node, pn)
		for _, o := range n.Outputs {
			made[o] = true
		}
	}
	for _, k := range sortedKeys(g.Info) {
		if made[k] { // a type of a value that a pass has removed would be an error
			pg.ValueInfo = append(pg.ValueInfo, g.Info[k].toProto())
		}
	}
	for _, name := range g.order {
		t, err := tensorProto(name, g.inits[name])
		if err != nil {
			return nil, err
		}
		pg.Initializer = append(pg.Initializer, t)
	}
	p.Graph = pg
	return p, nil
}

func cloneShell(s *pb.ModelProto) *pb.ModelProto {
	p := &pb.ModelProto{
		ProducerName: s.ProducerName, ProducerVersion: s.ProducerVersion, Domain: s.Domain,
		ModelVersion: s.ModelVersion, DocString: s.DocString, TrainingInfo: s.TrainingInfo,
		Functions: s.Functions, Configuration: s.Configuration,
	}
	keepUnknown(p, s)
	return p
}

// keepUnknown carries over the fields that a newer ONNX than ours has.
func keepUnknown(to, from proto.Message) {
	if u := from.ProtoReflect().GetUnknown(); len(u) > 0 {
		to.ProtoReflect().SetUnknown(u)
	}
}

func sortedKeys[V any](m map[string]V) []string {
	k := make([]string, 0, len(m))
	for s := range m {
		k = append(k, s)
	}
	sort.Strings(k)
	return k
}

func valueFrom(v *pb.ValueInfoProto) *Value {
	r := &Value{Name: v.GetName()}
	tt := v.GetType().GetTensorType()
	if tt == nil {
		r.proto = v.GetType()
		return r
	}
	r.Type = tensor.DType(tt.GetElemType())
	if tt.Shape != nil {
		r.Dims = make([]Dim, 0, len(tt.Shape.Dim))
		for _, d := range tt.Shape.Dim {
			switch x := d.GetValue().(type) {
			case *pb.TensorShapeProto_Dimension_DimValue:
				r.Dims = append(r.Dims, Dim{N: x.DimValue})
			case *pb.TensorShapeProto_Dimension_DimParam:
				r.Dims = append(r.Dims, Dim{N: -1, Name: x.DimParam})
			default:
				r.Dims = append(r.Dims, Dim{N: -1})
			}
		}
	}
	return r
}

func (v *Value) toProto() *pb.ValueInfoProto {
	p := &pb.ValueInfoProto{Name: proto.String(v.Name)}
	if v.proto != nil {
		p.Type = v.proto
		return p
	}
	if v.Type == tensor.Undefined {
		return p
	}
	tt := &pb.TypeProto_Tensor{ElemType: proto.Int32(int32(v.Type))}
	if v.Dims != nil {
		tt.Shape = &pb.TensorShapeProto{}
		for _, d := range v.Dims {
			pd := &pb.TensorShapeProto_Dimension{}
			switch {
			case d.N >= 0:
				pd.Value = &pb.TensorShapeProto_Dimension_DimValue{DimValue: d.N}
			case d.Name != "":
				pd.Value = &pb.TensorShapeProto_Dimension_DimParam{DimParam: d.Name}
			}
			tt.Shape.Dim = append(tt.Shape.Dim, pd)
		}
	}
	p.Type = &pb.TypeProto{Value: &pb.TypeProto_TensorType{TensorType: tt}}
	return p
}

// TensorFromProto decodes a TensorProto. Raw bytes are aliased; the typed
// fields (float_data and its siblings) are copied. A tensor whose data does
// not have exactly the length that its dimensions need is an error.
func TensorFromProto(p *pb.TensorProto) (*tensor.Tensor, error) {
	t := &tensor.Tensor{Type: tensor.DType(p.GetDataType()), Dims: p.Dims}
	if p.Segment != nil {
		return nil, errors.New("segmented tensors are not supported")
	}
	if p.GetDataLocation() == pb.TensorProto_EXTERNAL {
		return nil, errors.New("its external data was not loaded")
	}
	n, err := tensor.Elems(p.Dims)
	if err != nil {
		return nil, err
	}
	switch {
	case t.Type == tensor.String:
		t.Strings = p.StringData
	case p.RawData != nil:
		t.Data = p.RawData
	default:
		if t.Data, err = typedData(p, t.Type, n); err != nil {
			return nil, err
		}
	}
	if err := t.Check(); err != nil {
		return nil, err
	}
	return t, nil
}

// typedData packs float_data, int32_data, int64_data, double_data or
// uint64_data (onnx.proto says which type uses which) into raw bytes.
func typedData(p *pb.TensorProto, d tensor.DType, n int64) ([]byte, error) {
	var have int
	put := func(count, size int, f func(b []byte, i int)) []byte {
		have = count
		if int64(count) != n {
			return nil
		}
		b := make([]byte, count*size)
		for i := range count {
			f(b[i*size:], i)
		}
		return b
	}
	le := binary.LittleEndian
	var b []byte
	switch d {
	case tensor.Float32:
		b = put(len(p.FloatData), 4, func(b []byte, i int) { le.PutUint32(b, math.Float32bits(p.FloatData[i])) })
	case tensor.Float64:
		b = put(len(p.DoubleData), 8, func(b []byte, i int) { le.PutUint64(b, math.Float64bits(p.DoubleData[i])) })
	case tensor.Int64:
		b = put(len(p.Int64Data), 8, func(b []byte, i int) { le.PutUint64(b, uint64(p.Int64Data[i])) })
	case tensor.Uint64:
		b = put(len(p.Uint64Data), 8, func(b []byte, i int) { le.PutUint64(b, p.Uint64Data[i]) })
	case tensor.Uint32:
		b = put(len(p.Uint64Data), 4, func(b []byte, i int) { le.PutUint32(b, uint32(p.Uint64Data[i])) })
	case tensor.Int32:
		b = put(len(p.Int32Data), 4, func(b []byte, i int) { le.PutUint32(b, uint32(p.Int32Data[i])) })
	case tensor.Int16, tensor.Uint16, tensor.Float16, tensor.BFloat16:
		b = put(len(p.Int32Data), 2, func(b []byte, i int) { le.PutUint16(b, uint16(p.Int32Data[i])) })
	case tensor.Int8, tensor.Uint8, tensor.Bool, tensor.Float8E4M3FN, tensor.Float8E4M3FNUZ, tensor.Float8E5M2, tensor.Float8E5M2FNUZ:
		b = put(len(p.Int32Data), 1, func(b []byte, i int) { b[0] = byte(p.Int32Data[i]) })
	case tensor.Int4, tensor.Uint4, tensor.Float4E2M1: // two to an entry, packed as in raw_data
		want := (n + 1) / 2
		if have = len(p.Int32Data); int64(have) == want {
			b = make([]byte, have)
			for i, v := range p.Int32Data {
				b[i] = byte(v)
			}
		}
	default:
		return nil, fmt.Errorf("element type %v is not supported", d)
	}
	if b == nil && n > 0 {
		return nil, fmt.Errorf("%v%v needs %d elements, the file has %d", d, p.Dims, n, have)
	}
	if b == nil {
		b = []byte{}
	}
	return b, nil
}

// tensorProto wraps t without copying.
func tensorProto(name string, t *tensor.Tensor) (*pb.TensorProto, error) {
	if err := t.Check(); err != nil {
		return nil, fmt.Errorf("initializer %q: %w", name, err)
	}
	p := &pb.TensorProto{Name: proto.String(name), DataType: proto.Int32(int32(t.Type)), Dims: t.Dims}
	if t.Type == tensor.String {
		p.StringData = t.Strings
	} else if p.RawData = t.Data; p.RawData == nil {
		p.RawData = []byte{}
	}
	return p, nil
}
