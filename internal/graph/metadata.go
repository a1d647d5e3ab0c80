package graph

import (
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/fewbit/fewbit/internal/onnx/pb"
)

// SetMetadata sets key of the node's metadata, which viewers show (NodeProto's
// metadata_props). Nothing that runs the model reads it.
func (n *Node) SetMetadata(key, value string) {
	shell := &pb.NodeProto{} // of its own: clones of the model share the other
	if n.shell != nil {
		keepShell(shell, n.shell)
		shell.MetadataProps = slices.Clone(shell.MetadataProps)
	}
	n.shell = shell
	entry := &pb.StringStringEntryProto{Key: proto.String(key), Value: proto.String(value)}
	i := slices.IndexFunc(shell.MetadataProps, func(e *pb.StringStringEntryProto) bool { return e.GetKey() == key })
	if i < 0 {
		shell.MetadataProps = append(shell.MetadataProps, entry)
	} else {
		shell.MetadataProps[i] = entry
	}
}

// keepShell gives to what a Node has no fields for: doc string, overload, metadata, devices
// and what this version does not know.
func keepShell(to, from *pb.NodeProto) {
	to.DocString, to.Overload, to.MetadataProps = from.DocString, from.Overload, from.MetadataProps
	to.DeviceConfigurations = from.DeviceConfigurations
	keepUnknown(to, from)
}
