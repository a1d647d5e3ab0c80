package graph

import (
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/fewbit/fewbit/internal/onnx/pb"
)

// SetMetadata sets key of the node's metadata, which viewers show (NodeProto's
// metadata_props). Nothing that runs the model reads it.
func (n *Node) SetMetadata(key, value string) {
	shell := &pb.NodeProto{}
	if n.shell != nil {
		shell = proto.Clone(n.shell).(*pb.NodeProto)
	}
	n.shell = shell
	i := slices.IndexFunc(shell.MetadataProps, func(e *pb.StringStringEntryProto) bool { return e.GetKey() == key })
	if i < 0 {
		shell.MetadataProps = append(shell.MetadataProps, &pb.StringStringEntryProto{Key: proto.String(key)})
		i = len(shell.MetadataProps) - 1
	}
	shell.MetadataProps[i] = &pb.StringStringEntryProto{Key: proto.String(key), Value: proto.String(value)}
}
