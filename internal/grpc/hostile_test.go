package grpc

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/fewbit/fewbit/internal/grpc/pb"
	"github.com/fewbit/fewbit/internal/tensor"
)

// wire is a connection that speaks HTTP/2 frame by frame, to send what no
// client does.
type wire struct {
	net.Conn
	*http2.Framer
	head bytes.Buffer
	enc  *hpack.Encoder
}

func dialWire(t *testing.T, addr string) *wire {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	w := &wire{Conn: c, Framer: http2.NewFramer(c, c)}
	w.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	w.enc = hpack.NewEncoder(&w.head)
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := w.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return w
}

// call opens a stream with the headers of a call, and more.
func (w *wire) call(t *testing.T, stream uint32, path string, end bool, more ...string) {
	t.Helper()
	w.head.Reset()
	fields := append([]string{":method", "POST", ":scheme", "http", ":path", path, ":authority", "x", "content-type", "application/grpc", "te", "trailers"}, more...)
	for i := 0; i < len(fields); i += 2 {
		if err := w.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: w.head.Bytes(), EndHeaders: true, EndStream: end}); err != nil {
		t.Fatal(err)
	}
}

// result reads until the stream has ended and returns gRPC's status, "reset" or
// "closed".
func (w *wire) result(stream uint32) string {
	for {
		f, err := w.ReadFrame()
		if err != nil {
			return "closed"
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			if f.StreamID == stream {
				for _, h := range f.Fields {
					if h.Name == "grpc-status" {
						return h.Value
					}
				}
			}
		case *http2.RSTStreamFrame:
			if f.StreamID == stream {
				return "reset"
			}
		case *http2.GoAwayFrame:
			return "closed"
		}
	}
}

// results are the statuses of n streams, 1, 3, 5 and so on, in the order they end.
func (w *wire) results(n int) (statuses []string) {
	for len(statuses) < n {
		f, err := w.ReadFrame()
		if err != nil {
			return statuses
		}
		if f, ok := f.(*http2.MetaHeadersFrame); ok {
			for _, h := range f.Fields {
				if h.Name == "grpc-status" {
					statuses = append(statuses, h.Value)
				}
			}
		}
	}
	return statuses
}

// message frames a body as gRPC does, with a length and a flag of the caller's.
func message(flag byte, length uint32, body []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{flag}, length), body...)
}

const inferMethod = pb.GRPCInferenceService_ModelInfer_FullMethodName

// TestBadBytes: bytes that are no call end the call or the connection, and the
// next call of another client is answered.
func TestBadBytes(t *testing.T) {
	addr, _ := serve(t, echoes(tensor.Float32), nil, Options{})
	c := dial(t, addr, insecure.NewCredentials())
	good, err := proto.Marshal(right())
	if err != nil {
		t.Fatal(err)
	}
	bad := func(code codes.Code) string { return fmt.Sprint(uint32(code)) }
	for _, x := range []struct {
		name string
		body []byte
		more []string
		want string
	}{
		{"right", message(0, uint32(len(good)), good), nil, bad(codes.OK)},
		{"no message", nil, nil, bad(codes.Internal)},
		{"half a prefix", []byte{0, 0}, nil, bad(codes.Internal)},
		{"length past the end", message(0, uint32(len(good))+1, good), nil, bad(codes.Internal)},
		{"length over the limit", message(0, 1<<20+1, good), nil, bad(codes.ResourceExhausted)},
		{"length 2^32-1", message(0, 1<<32-1, good), nil, bad(codes.ResourceExhausted)},
		{"two messages", append(message(0, uint32(len(good)), good), message(0, uint32(len(good)), good)...), nil, bad(codes.Internal)},
		{"truncated protobuf", message(0, uint32(len(good))-3, good[:len(good)-3]), nil, bad(codes.Internal)},
		{"not protobuf", message(0, 4, []byte{0xff, 0xff, 0xff, 0xff}), nil, bad(codes.Internal)},
		{"text", message(0, 2, []byte("{}")), nil, bad(codes.Internal)},
		{"compressed without a coding", message(1, uint32(len(good)), good), nil, bad(codes.Internal)},
		{"unknown coding", message(1, uint32(len(good)), good), []string{"grpc-encoding", "br"}, bad(codes.Unimplemented)},
		{"not gzip", message(1, uint32(len(good)), good), []string{"grpc-encoding", "gzip"}, bad(codes.Internal)},
		{"unknown flag", message(2, uint32(len(good)), good), nil, bad(codes.Internal)},
		{"empty request", message(0, 0, nil), nil, bad(codes.NotFound)}, // of a model without a name
		{"timeout that is none", message(0, uint32(len(good)), good), []string{"grpc-timeout", "-1S"}, "reset or " + bad(codes.Internal)},
		{"timeout passed", message(0, uint32(len(good)), good), []string{"grpc-timeout", "0n"}, bad(codes.DeadlineExceeded)},
	} {
		w := dialWire(t, addr)
		w.call(t, 1, inferMethod, false, x.more...)
		_ = w.WriteData(1, true, x.body)
		got := w.result(1)
		if !strings.Contains(x.want, got) {
			t.Errorf("%s: status %s, want %s", x.name, got, x.want)
		}
		w.Close()
	}
	for _, path := range []string{"", "/", "//", strings.ToLower(inferMethod), inferMethod + "/", "/" + inferMethod, "/inference.GRPCInferenceService/", "/inference.GRPCInferenceService/Nothing", "*", strings.Repeat("/x", 4000)} {
		w := dialWire(t, addr)
		w.call(t, 1, path, true)
		if got := w.result(1); got == "0" {
			t.Errorf("path %.40q was answered", path)
		}
		w.Close()
	}
	for name, raw := range map[string]string{
		"HTTP/1.1": "POST " + inferMethod + " HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", "a TLS hello": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + strings.Repeat("a", 500),
		"zeros": strings.Repeat("\x00", 4096), "preface alone": http2.ClientPreface, "half a preface": http2.ClientPreface[:7],
		"a frame of 16 MiB": http2.ClientPreface + "\xff\xff\xff\x00\x00\x00\x00\x00\x01" + strings.Repeat("x", 9000), "data before headers": http2.ClientPreface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00" + "\x00\x00\x01\x00\x00\x00\x00\x00\x01x",
	} {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(200 * time.Millisecond))
		_, _ = io.WriteString(conn, raw)
		if b, _ := io.ReadAll(conn); bytes.Contains(b, []byte("goroutine")) {
			t.Errorf("%s: answered %q", name, b)
		}
		conn.Close()
	}
	if _, err := c.ModelInfer(t.Context(), right()); err != nil {
		t.Errorf("the next request: %v", err)
	}
}

// A header without end, by continuation frames, and one of many fields end the
// connection or the call before they take memory.
func TestHeaderFlood(t *testing.T) {
	addr, _ := serve(t, echoes(tensor.Float32), nil, Options{})
	w := dialWire(t, addr)
	w.head.Reset()
	for _, f := range []hpack.HeaderField{{Name: ":method", Value: "POST"}, {Name: ":path", Value: inferMethod}} {
		if err := w.enc.WriteField(f); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: w.head.Bytes()}); err != nil {
		t.Fatal(err)
	}
	sent := 0
	for ; sent < 64<<20; sent += 16 << 10 {
		w.head.Reset()
		for i := 0; w.head.Len() < 16<<10-200; i++ {
			_ = w.enc.WriteField(hpack.HeaderField{Name: fmt.Sprintf("x-%d-%d", sent, i), Value: strings.Repeat("v", 100), Sensitive: true})
		}
		if w.WriteContinuation(1, false, w.head.Bytes()) != nil {
			break
		}
	}
	if sent >= 64<<20 {
		t.Error("64 MiB of header were read")
	}
	c := dial(t, addr, insecure.NewCredentials())
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-long", strings.Repeat("v", 80<<10))
	if _, err := c.ModelInfer(ctx, right()); err == nil {
		t.Error("metadata of 80 KiB was taken")
	}
	if _, err := c.ModelInfer(t.Context(), right()); err != nil {
		t.Errorf("the next request: %v", err)
	}
}

// A message that is small on the wire and large after gzip is refused at the
// limit; one within it is answered.
func TestCompressed(t *testing.T) {
	addr, _ := serve(t, echoes(tensor.Float32), nil, Options{})
	c := dial(t, addr, insecure.NewCredentials())
	before := heap()
	bomb := right()
	bomb.RawInputContents[0] = make([]byte, 32<<20)
	if _, err := c.ModelInfer(t.Context(), bomb, grpc.UseCompressor(gzip.Name), grpc.MaxCallSendMsgSize(64<<20)); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a bomb: %v", err)
	}
	if _, err := c.ModelInfer(t.Context(), right(), grpc.UseCompressor(gzip.Name)); err != nil {
		t.Errorf("a compressed request: %v", err)
	}
	bomb = nil
	if after := heap(); after > before+24<<20 {
		t.Errorf("the heap grew from %d to %d MiB", before>>20, after>>20)
	}
}

// TestManyTensors: a short message of very many empty tensors is refused before they
// are made.
func TestManyTensors(t *testing.T) {
	addr, _ := serve(t, echoes(tensor.Float32), nil, Options{})
	c := dial(t, addr, insecure.NewCredentials())
	const n = 400_000
	for name, add := range map[string]func(*pb.ModelInferRequest){
		"inputs": func(r *pb.ModelInferRequest) { r.Inputs = slices.Repeat(r.Inputs[:1], n) },
		"outputs": func(r *pb.ModelInferRequest) {
			r.Outputs = slices.Repeat([]*pb.ModelInferRequest_InferRequestedOutputTensor{{}}, n)
		},
		"raw": func(r *pb.ModelInferRequest) { r.RawInputContents = make([][]byte, n) },
	} {
		r := right()
		r.Inputs[0] = &pb.ModelInferRequest_InferInputTensor{}
		add(r)
		b, err := proto.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		var got pb.ModelInferRequest
		if err := newCodec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(b)}, &got); err != nil || got.GetModelName() != r.GetModelName() {
			t.Errorf("%s: %v, model %q", name, err, got.GetModelName())
		}
		if runtime.ReadMemStats(&after); after.TotalAlloc-before.TotalAlloc > 1<<20 {
			t.Errorf("%s: %d MiB were allocated", name, (after.TotalAlloc-before.TotalAlloc)>>20)
		}
		if _, err := c.ModelInfer(t.Context(), r); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "more than 256") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := c.ModelInfer(t.Context(), right()); err != nil {
		t.Errorf("the next request: %v", err)
	}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// Requests that never arrive whole are given up, and no more than maxReceiving
// wait at a time.
func TestSlowRequests(t *testing.T) {
	const patience = 300 * time.Millisecond
	addr, _ := serve(t, echoes(tensor.Float32), nil, Options{ReceiveTimeout: patience})
	good, err := proto.Marshal(right())
	if err != nil {
		t.Fatal(err)
	}
	c := dial(t, addr, insecure.NewCredentials())
	resting, err := c.ModelStreamInfer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w := dialWire(t, addr)
	w.call(t, 1, inferMethod, false)
	if err := w.WriteData(1, false, message(0, uint32(len(good)), good[:4])); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if got := w.result(1); got == "0" {
		t.Error("half a message was answered")
	}
	if took := time.Since(begin); took < patience/2 || took > 20*time.Second {
		t.Errorf("it was given up after %v", took)
	}
	begin = time.Now()
	refused, ended := 0, 0
	var ws []*wire
	for range 3 {
		w := dialWire(t, addr)
		ws = append(ws, w)
		for i := range uint32(120) {
			w.call(t, 2*i+1, inferMethod, false)
		}
	}
	for _, w := range ws {
		for _, got := range w.results(120) {
			ended++
			switch got {
			case "0":
				t.Error("a call without a message was answered")
			case fmt.Sprint(uint32(codes.Unavailable)):
				refused++
			}
		}
	}
	// On a machine so busy that the first are given up meanwhile, none need be.
	if ended != 360 || refused > 360-maxReceiving || refused == 0 && time.Since(begin) < 2*patience {
		t.Errorf("%d of 360 calls ended, %d were refused at once; %d may wait", ended, refused, maxReceiving)
	}
	if _, err := c.ModelInfer(t.Context(), right()); err != nil {
		t.Errorf("the next request: %v", err)
	}
	// A stream may rest longer than a request may take to arrive.
	if err := resting.Send(right()); err != nil {
		t.Fatal(err)
	}
	if ans, err := resting.Recv(); err != nil || ans.GetErrorMessage() != "" {
		t.Errorf("a stream that rested: %v, %v", ans, err)
	}
}

// A stream whose client leaves in the middle of a message, or never reads, holds
// nothing.
func TestStreamAbandoned(t *testing.T) {
	addr, _ := serve(t, echoes(tensor.Float32), nil, Options{})
	good, err := proto.Marshal(right())
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		w := dialWire(t, addr)
		w.call(t, 1, pb.GRPCInferenceService_ModelStreamInfer_FullMethodName, false)
		_ = w.WriteData(1, false, message(0, uint32(len(good)), good))
		_ = w.WriteData(1, false, message(0, uint32(len(good)), good[:5]))
		w.Close()
	}
	c := dial(t, addr, insecure.NewCredentials())
	if _, err := c.ModelInfer(t.Context(), right()); err != nil {
		t.Errorf("the next request: %v", err)
	}
}
