package grpc

import (
	"context"
	"errors"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/grpc/pb"
	fhttp "github.com/fewbit/fewbit/internal/http"
	"github.com/fewbit/fewbit/internal/registry"
)

// ServerLive answers true: who can answer is alive.
func (s *Server) ServerLive(context.Context, *pb.ServerLiveRequest) (*pb.ServerLiveResponse, error) {
	return &pb.ServerLiveResponse{Live: true}, nil
}

// ServerReady reports what GET /v2/health/ready does.
func (s *Server) ServerReady(context.Context, *pb.ServerReadyRequest) (*pb.ServerReadyResponse, error) {
	return &pb.ServerReadyResponse{Ready: s.b.IsReady()}, nil
}

// ModelReady reports whether requests for the model would be served now. An
// unknown model is not ready, as clients of this call expect, and no error.
func (s *Server) ModelReady(_ context.Context, r *pb.ModelReadyRequest) (*pb.ModelReadyResponse, error) {
	ready, err := s.b.Ready(r.GetName(), r.GetVersion())
	if errors.Is(err, registry.ErrNotFound) {
		err = nil
	}
	return &pb.ModelReadyResponse{Ready: ready}, err
}

// ServerMetadata names the server and what it implements.
func (s *Server) ServerMetadata(context.Context, *pb.ServerMetadataRequest) (*pb.ServerMetadataResponse, error) {
	name, version, extensions := s.b.Info()
	return &pb.ServerMetadataResponse{Name: name, Version: version, Extensions: extensions}, nil
}

// leased runs f with the model's inputs and outputs.
func (s *Server) leased(ctx context.Context, name, version string, f func(engine.IOSpec)) error {
	l, err := s.b.Models().Acquire(ctx, name, version)
	if err != nil {
		return err
	}
	defer l.Release()
	f(l.Spec())
	return nil
}

// ModelMetadata lists a model's versions, inputs and outputs.
func (s *Server) ModelMetadata(ctx context.Context, r *pb.ModelMetadataRequest) (*pb.ModelMetadataResponse, error) {
	infos, err := s.b.ModelVersions(r.GetName(), r.GetVersion())
	if err != nil {
		return nil, err
	}
	ans := &pb.ModelMetadataResponse{Name: r.GetName(), Platform: fhttp.Platform}
	for _, i := range infos {
		ans.Versions = append(ans.Versions, i.Version)
	}
	tensors := func(ios []engine.IO) (ts []*pb.ModelMetadataResponse_TensorMetadata) {
		for _, io := range ios {
			ts = append(ts, &pb.ModelMetadataResponse_TensorMetadata{Name: io.Name, Datatype: io.Type.String(), Shape: io.Dims})
		}
		return ts
	}
	return ans, s.leased(ctx, r.GetName(), r.GetVersion(), func(spec engine.IOSpec) {
		ans.Inputs, ans.Outputs = tensors(spec.Inputs), tensors(spec.Outputs)
	})
}

// ModelConfig words the same as Triton's model configuration.
func (s *Server) ModelConfig(ctx context.Context, r *pb.ModelConfigRequest) (*pb.ModelConfigResponse, error) {
	c := &pb.ModelConfig{Name: r.GetName(), Platform: fhttp.Platform, Backend: "onnxruntime"}
	return &pb.ModelConfigResponse{Config: c}, s.leased(ctx, r.GetName(), r.GetVersion(), func(spec engine.IOSpec) {
		for _, io := range spec.Inputs {
			c.Input = append(c.Input, &pb.ModelInput{Name: io.Name, DataType: dataType(io), Dims: io.Dims})
		}
		for _, io := range spec.Outputs {
			c.Output = append(c.Output, &pb.ModelOutput{Name: io.Name, DataType: dataType(io), Dims: io.Dims})
		}
	})
}

func dataType(io engine.IO) pb.DataType {
	kind := io.Type.String()
	if kind == "BYTES" {
		kind = "STRING" // the configuration has its own name for it
	}
	return pb.DataType(pb.DataType_value["TYPE_"+kind])
}

// ModelStatistics counts what was answered, of one model or of all.
func (s *Server) ModelStatistics(_ context.Context, r *pb.ModelStatisticsRequest) (*pb.ModelStatisticsResponse, error) {
	stats, err := s.b.Statistics(r.GetName(), r.GetVersion())
	if err != nil {
		return nil, err
	}
	d := func(v fhttp.Duration) *pb.StatisticDuration { return &pb.StatisticDuration{Count: v.Count, Ns: v.NS} }
	ans := &pb.ModelStatisticsResponse{}
	for _, m := range stats {
		i := m.Inference
		out := &pb.ModelStatistics{
			Name: m.Name, Version: m.Version, LastInference: uint64(m.LastInference), InferenceCount: m.InferenceCount, ExecutionCount: m.ExecutionCount,
			InferenceStats: &pb.InferStatistics{
				Success: d(i.Success), Fail: d(i.Fail), Queue: d(i.Queue), ComputeInput: d(i.Input), ComputeInfer: d(i.Infer), ComputeOutput: d(i.Output),
				CacheHit: d(i.CacheHit), CacheMiss: d(i.CacheMiss),
			},
		}
		for _, b := range m.Batches {
			out.BatchStats = append(out.BatchStats, &pb.InferBatchStatistics{BatchSize: uint64(b.Size), ComputeInput: d(b.Input), ComputeInfer: d(b.Infer), ComputeOutput: d(b.Output)})
		}
		for _, u := range m.Memory {
			out.MemoryUsage = append(out.MemoryUsage, &pb.MemoryUsage{Type: u.Type, Id: u.ID, ByteSize: u.Bytes})
		}
		ans.ModelStats = append(ans.ModelStats, out)
	}
	return ans, nil
}

// RepositoryIndex lists the versions of all models.
func (s *Server) RepositoryIndex(_ context.Context, r *pb.RepositoryIndexRequest) (*pb.RepositoryIndexResponse, error) {
	ans := &pb.RepositoryIndexResponse{}
	for _, m := range s.b.Models().List() {
		if !r.GetReady() || m.State == fhttp.StateReady {
			ans.Models = append(ans.Models, &pb.RepositoryIndexResponse_ModelIndex{Name: m.Name, Version: m.Version, State: m.State, Reason: m.Reason})
		}
	}
	return ans, nil
}

// RepositoryModelLoad loads the default version, loads it again, or loads the
// version whose files the call brings.
func (s *Server) RepositoryModelLoad(ctx context.Context, r *pb.RepositoryModelLoadRequest) (*pb.RepositoryModelLoadResponse, error) {
	p := &fhttp.LoadParams{}
	for key, v := range r.GetParameters() {
		if key == "config" {
			p.Config([]byte(v.GetStringParam()))
			continue
		}
		if _, ok := v.GetParameterChoice().(*pb.ModelRepositoryParameter_BytesParam); !ok {
			return nil, fhttp.BadRequest("parameter %.60q of load: expected bytes_param with the file's contents", key)
		}
		if err := p.File(key, v.GetBytesParam()); err != nil {
			return nil, err
		}
	}
	_, err := s.b.Load(ctx, r.GetModelName(), p)
	return &pb.RepositoryModelLoadResponse{}, err
}

// RepositoryModelUnload stops serving a model.
func (s *Server) RepositoryModelUnload(ctx context.Context, r *pb.RepositoryModelUnloadRequest) (*pb.RepositoryModelUnloadResponse, error) {
	for key := range r.GetParameters() {
		if err := fhttp.CheckUnload(key); err != nil {
			return nil, err
		}
	}
	return &pb.RepositoryModelUnloadResponse{}, s.b.Models().Unload(ctx, r.GetModelName())
}
