package grpc

import (
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/fewbit/fewbit/internal/grpc/pb"
	fhttp "github.com/fewbit/fewbit/internal/http"
)

// counting is gRPC's own codec, but that it counts the tensors of a request before it
// makes messages of them: two bytes of an empty one become two hundred.
type counting struct{ encoding.CodecV2 }

func newCodec() counting { return counting{encoding.GetCodecV2(proto.Name)} }

// Numbers of the fields of ModelInferRequest.
const (
	fieldModel   protowire.Number = 1
	fieldVersion protowire.Number = 2
	fieldID      protowire.Number = 3
	fieldInputs  protowire.Number = 5
	fieldOutputs protowire.Number = 6
	fieldRaw     protowire.Number = 7
)

// Unmarshal implements encoding.CodecV2.
func (c counting) Unmarshal(data mem.BufferSlice, v any) error {
	if r, ok := v.(*pb.ModelInferRequest); ok {
		whole := data.MaterializeToBuffer(mem.DefaultBufferPool())
		defer whole.Free()
		if tooMany(whole.ReadOnlyData(), r) {
			return nil
		}
		data = mem.BufferSlice{whole}
	}
	return c.CodecV2.Unmarshal(data, v)
}

// tooMany reports whether b is a request with more tensors than are allowed. Then r has
// its names, and as many inputs, all nil, that callOf refuses it; an error of a codec
// would be the server's.
func tooMany(b []byte, r *pb.ModelInferRequest) bool {
	var counts [fieldRaw + 1]int
	var names [fieldID + 1][]byte
	for len(b) > 0 {
		field, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return false // the codec words it
		}
		b = b[n:]
		if n = protowire.ConsumeFieldValue(field, kind, b); n < 0 {
			return false
		}
		switch field {
		case fieldModel, fieldVersion, fieldID:
			if text, k := protowire.ConsumeBytes(b[:n]); kind == protowire.BytesType && k == n && k <= fhttp.MaxRequestID {
				names[field] = text
			}
		case fieldInputs, fieldOutputs, fieldRaw:
			counts[field]++
		}
		b = b[n:]
	}
	if max(counts[fieldInputs], counts[fieldOutputs], counts[fieldRaw]) <= fhttp.MaxTensors {
		return false
	}
	r.ModelName, r.ModelVersion, r.Id = string(names[fieldModel]), string(names[fieldVersion]), string(names[fieldID])
	r.Inputs = make([]*pb.ModelInferRequest_InferInputTensor, fhttp.MaxTensors+1)
	return true
}
