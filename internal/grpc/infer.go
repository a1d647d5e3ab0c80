package grpc

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/grpc/pb"
	fhttp "github.com/fewbit/fewbit/internal/http"
	"github.com/fewbit/fewbit/internal/tensor"
	"github.com/fewbit/fewbit/internal/trace"
)

// ModelInfer answers one inference.
func (s *Server) ModelInfer(ctx context.Context, r *pb.ModelInferRequest) (*pb.ModelInferResponse, error) {
	var ans *pb.ModelInferResponse
	origin := trace.Origin{Arrival: time.Now(), ID: idOf(ctx)}
	origin.Header, _ = metadata.FromIncomingContext(ctx)
	err := s.b.Infer(ctx, r.GetModelName(), r.GetModelVersion(), origin,
		func(engine.IOSpec) (fhttp.Call, error) { return callOf(r) },
		func(l fhttp.Lease, names []string, res engine.Result) error {
			ans = answer(r, l, names, res)
			return nil
		})
	return ans, err
}

// strictHeader is Triton's: a client that sends it as "true" wants the stream to
// end with the status of the first error, as that of a single call.
const strictHeader = "triton_grpc_error"

// Parameters of an answer in a stream that is an error: what the status of a
// single call says. The protocol has no fields for it.
const (
	codeParam  = "grpc_code"
	retryParam = "retry_delay_ms"
)

// ModelStreamInfer answers the inferences of a stream in their order. An error
// of one is its answer's error_message; the stream goes on, unless the client
// asked for strict errors.
func (s *Server) ModelStreamInfer(stream grpc.BidiStreamingServer[pb.ModelInferRequest, pb.ModelStreamInferResponse]) error {
	ctx := stream.Context()
	md, _ := metadata.FromIncomingContext(ctx)
	strict := slices.Contains(md[strictHeader], "true")
	first := true
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		ans, err := s.streamed(stream, r, first)
		first = false
		out := &pb.ModelStreamInferResponse{InferResponse: ans}
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return ctx.Err()
		case strict:
			return err
		default:
			_, st, retry := s.reason(ctx, pb.GRPCInferenceService_ModelStreamInfer_FullMethodName, err)
			// The id says which request it was.
			out.ErrorMessage, out.InferResponse = st.Message(), &pb.ModelInferResponse{Id: r.GetId(), Parameters: map[string]*pb.InferParameter{codeParam: number(int64(st.Code()))}}
			if retry > 0 {
				out.InferResponse.Parameters[retryParam] = number(retry.Milliseconds())
			}
		}
		if err := stream.Send(out); err != nil {
			return err
		}
	}
}

func number(n int64) *pb.InferParameter {
	return &pb.InferParameter{ParameterChoice: &pb.InferParameter_Int64Param{Int64Param: n}}
}

// streamed answers one message of a stream. The first was counted when the
// stream was opened.
func (s *Server) streamed(stream grpc.ServerStream, r *pb.ModelInferRequest, first bool) (*pb.ModelInferResponse, error) {
	if !first {
		if err := s.b.Allow(&callIn(stream.Context()).caller); err != nil {
			return nil, err
		}
	}
	free, err := s.take(r)
	if err != nil {
		return nil, err
	}
	defer free()
	return s.ModelInfer(stream.Context(), r)
}

// callOf reads a request. Its tensors share memory with it.
func callOf(r *pb.ModelInferRequest) (fhttp.Call, error) {
	call := fhttp.Call{Feeds: make(engine.Feeds, len(r.GetInputs()))}
	if n := len(r.GetInputs()); n > fhttp.MaxTensors || len(r.GetOutputs()) > fhttp.MaxTensors {
		return call, fhttp.BadRequest("more than %d inputs or outputs", fhttp.MaxTensors)
	}
	if len(r.GetId()) > fhttp.MaxRequestID {
		return call, fhttp.BadRequest("the id is longer than %d bytes", fhttp.MaxRequestID)
	}
	raw := r.GetRawInputContents()
	if len(raw) != 0 && len(raw) != len(r.GetInputs()) {
		return call, fhttp.BadRequest("%d raw_input_contents for %d inputs", len(raw), len(r.GetInputs()))
	}
	for i, in := range r.GetInputs() {
		name := in.GetName()
		if name == "" || len(name) > fhttp.MaxTensorName {
			return call, fhttp.BadRequest("input %d: its name has %d bytes, expected 1 to %d", i, len(name), fhttp.MaxTensorName)
		}
		if call.Feeds[name] != nil {
			return call, fhttp.BadRequest("input %q is given twice", name)
		}
		data, err := contents(in)
		if err != nil {
			return call, err
		}
		if len(raw) > 0 {
			if data != nil {
				return call, fhttp.BadRequest("input %q has both contents and raw_input_contents", name)
			}
			data = raw[i]
		}
		if call.Feeds[name], err = fhttp.TensorOf(name, in.GetDatatype(), in.GetShape(), data); err != nil {
			return call, err
		}
	}
	for _, o := range r.GetOutputs() {
		call.Outputs = append(call.Outputs, o.GetName())
	}
	if p := r.GetParameters()["timeout"]; p != nil {
		us := p.GetInt64Param()
		if us == 0 {
			us = int64(min(p.GetUint64Param(), math.MaxInt64))
		}
		if us < 0 || us > fhttp.MaxTimeoutMicros {
			return call, fhttp.BadRequest("parameter timeout is %d microseconds, expected 0 to %d", us, fhttp.MaxTimeoutMicros)
		}
		call.Timeout = time.Duration(us) * time.Microsecond
	}
	return call, nil
}

// contents returns the typed elements of an input in the binary form, nil when
// there are none.
func contents(in *pb.ModelInferRequest_InferInputTensor) ([]byte, error) {
	c := in.GetContents()
	if c == nil {
		return nil, nil
	}
	le := binary.LittleEndian
	var b []byte
	var bad bool
	// small appends integers that the protocol carries in wider fields.
	small := func(v int64, lo, hi int64, size int) {
		bad = bad || v < lo || v > hi
		if size == 1 {
			b = append(b, byte(v))
		} else {
			b = le.AppendUint16(b, uint16(v))
		}
	}
	n := 0
	switch kind := in.GetDatatype(); kind {
	case "BOOL":
		for _, v := range c.GetBoolContents() {
			if v {
				b = append(b, 1)
			} else {
				b = append(b, 0)
			}
		}
		n = len(c.GetBoolContents())
	case "INT8", "INT16", "INT32":
		n = len(c.GetIntContents())
		for _, v := range c.GetIntContents() {
			switch kind {
			case "INT8":
				small(int64(v), math.MinInt8, math.MaxInt8, 1)
			case "INT16":
				small(int64(v), math.MinInt16, math.MaxInt16, 2)
			default:
				b = le.AppendUint32(b, uint32(v))
			}
		}
	case "UINT8", "UINT16", "UINT32":
		n = len(c.GetUintContents())
		for _, v := range c.GetUintContents() {
			switch kind {
			case "UINT8":
				small(int64(v), 0, math.MaxUint8, 1)
			case "UINT16":
				small(int64(v), 0, math.MaxUint16, 2)
			default:
				b = le.AppendUint32(b, v)
			}
		}
	case "INT64":
		n = len(c.GetInt64Contents())
		for _, v := range c.GetInt64Contents() {
			b = le.AppendUint64(b, uint64(v))
		}
	case "UINT64":
		n = len(c.GetUint64Contents())
		for _, v := range c.GetUint64Contents() {
			b = le.AppendUint64(b, v)
		}
	case "FP32":
		n = len(c.GetFp32Contents())
		for _, v := range c.GetFp32Contents() {
			b = le.AppendUint32(b, math.Float32bits(v))
		}
	case "FP64":
		n = len(c.GetFp64Contents())
		for _, v := range c.GetFp64Contents() {
			b = le.AppendUint64(b, math.Float64bits(v))
		}
	case "BYTES":
		n = len(c.GetBytesContents())
		for _, v := range c.GetBytesContents() {
			b = append(le.AppendUint32(b, uint32(len(v))), v...)
		}
	default: // FP16 and BF16 have no field
		return nil, fhttp.BadRequest("input %q: %q travels in raw_input_contents only", in.GetName(), kind)
	}
	total := len(c.GetBoolContents()) + len(c.GetIntContents()) + len(c.GetInt64Contents()) + len(c.GetUintContents()) + len(c.GetUint64Contents()) +
		len(c.GetFp32Contents()) + len(c.GetFp64Contents()) + len(c.GetBytesContents())
	switch {
	case total != n:
		return nil, fhttp.BadRequest("input %q: %s does not travel in the contents that were sent", in.GetName(), in.GetDatatype())
	case bad:
		return nil, fhttp.BadRequest("input %q: a value is outside %s", in.GetName(), in.GetDatatype())
	case b == nil && total == 0:
		return nil, nil
	}
	return b, nil
}

// answer copies the result: it is sent after the engine has its memory back.
func answer(r *pb.ModelInferRequest, l fhttp.Lease, names []string, res engine.Result) *pb.ModelInferResponse {
	ans := &pb.ModelInferResponse{ModelName: l.Name(), ModelVersion: l.Version(), Id: r.GetId()}
	out := res.Tensors()
	for _, name := range names {
		t := out[name]
		if t == nil { // an optional output may be left out
			continue
		}
		data := fhttp.Bytes(t)
		if t.Type != tensor.String {
			data = append([]byte(nil), data...)
		}
		ans.Outputs = append(ans.Outputs, &pb.ModelInferResponse_InferOutputTensor{Name: name, Datatype: t.Type.String(), Shape: append([]int64(nil), t.Dims...)})
		ans.RawOutputContents = append(ans.RawOutputContents, data)
	}
	return ans
}
