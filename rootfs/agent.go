package rootfs

import (
	"context"
	"embed"
	"fmt"
	"io/fs"
	"strings"
)

// The guest agent, as it is in this source tree. Its tests lie elsewhere.
//
//go:embed agent/*.py
var agentSources embed.FS

// agentDir is where the agent lives in the root; bundles start
// agentDir/agent.pyc.
const agentDir = "usr/lib/psi"

// addAgent plans the agent's sources, for tracebacks, and the empty file on
// which a script entry is mounted. The bytecode comes with addBytecode.
func (b *builder) addAgent(context.Context) error {
	found := false
	files, err := fs.ReadDir(agentSources, "agent")
	if err != nil {
		return fmt.Errorf("reading embedded agent: %w", err)
	}
	for _, file := range files {
		if strings.HasPrefix(file.Name(), "test_") {
			continue
		}
		source, err := agentSources.ReadFile("agent/" + file.Name())
		if err != nil {
			return fmt.Errorf("reading embedded agent: %w", err)
		}
		b.tree.bytes(agentDir+"/"+file.Name(), source)
		found = found || file.Name() == "agent.py"
	}
	if !found {
		return fmt.Errorf("reading embedded agent: no agent.py: this program was built from an incomplete source tree")
	}
	b.tree.bytes(agentDir+"/entry.py", nil)
	return nil
}
