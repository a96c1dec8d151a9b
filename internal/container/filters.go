package container

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/sirupsen/logrus"

	"github.com/psi-runtime/psi/internal/filtercache"
)

// Filters that libcontainer compiles in a container's first process are kept on the
// host for the next one (package filtercache). That process reads them before it does
// anything else, when it is in a copy of the host's mounts still. A process that exec
// starts is in the container's mounts from its first instruction, and so is one whose
// bundle names a mount namespace to join: what they would read there is the guest's to
// write. The sign to read them is two zeros before the log level (see makeRoom), which
// may itself be one.

const filtersSign = "00"

// filters is where they are kept, for containers of the host's root.
func filters() string { return filepath.Join(DefaultRunDir, "filters") }

// knowFilters is called by init.
func knowFilters() {
	if strings.HasPrefix(strings.TrimPrefix(os.Getenv(levelVariable), "+"), filtersSign) {
		filtercache.Load(filters())
	}
}

// mayKnowFilters: the first process has a filter, and the host's mounts to begin with.
func mayKnowFilters(config *configs.Config) bool {
	own := false
	for _, namespace := range config.Namespaces {
		own = own || namespace.Type == configs.NEWNS && namespace.Path == ""
	}
	return own && config.Seccomp != nil && !Rootless()
}

// keepFilter has the next container with the same filter find it.
func (c *Container) keepFilter() {
	if config := c.lc.Config(); mayKnowFilters(&config) {
		if err := filtercache.Save(filters(), config.Seccomp); err != nil {
			logrus.Debugf("container %s: keeping its seccomp filter: %v", c.id, err)
		}
	}
}
