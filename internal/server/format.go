package server

import (
	"context"

	"github.com/legation-io/legation/internal/store/etcd"
)

func openFormat(context.Context, *etcd.Store, string) error { return nil }
