package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"text/template"

	"shop.example/topology"
)

const written = "# Written by `make generate` from %s; never edited.\n"

// resources are what a service has in the cluster besides what it has on any: a certificate of the shop's CA, and what it is
// scaled by: the length of its queue, or its use of CPU if it has none. Its place in the queue's length is what one replica
// handles in a second.
var resources = template.Must(template.New("").Parse(`{{range .}}---
apiVersion: cert-manager.io/v1
kind: Certificate
metadata:
  name: {{.Name}}
spec:
  secretName: {{.Name}}-tls
  dnsNames: [{{.Name}}]
  usages: [digital signature, server auth, client auth]
  privateKey: {algorithm: ECDSA, size: 256, rotationPolicy: Always}
  issuerRef: {name: ca}
---
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  name: {{.Name}}
spec:
  scaleTargetRef: {name: {{.Name}}}
  minReplicaCount: 2
  maxReplicaCount: 10
  triggers:
{{- if .Bindings}}
    - type: rabbitmq
      metadata: {host: "amqps://rabbitmq.shop.svc:5671/", protocol: amqp, queueName: {{.Name}}, mode: QueueLength, value: "1000"}
      authenticationRef: {name: rabbitmq}
{{- else}}
    - type: cpu
      metricType: Utilization
      metadata: {value: "70"}
{{- end}}
{{end}}`))

// writeKubernetes writes what the production overlay has of each service, and the rules of Prometheus as its operator takes
// them.
func writeKubernetes(dir string) error {
	services := bytes.NewBufferString(fmt.Sprintf(written, "the table in package topology"))
	if err := resources.Execute(services, topology.Services()); err != nil {
		return fmt.Errorf("writing the resources of services: %w", err)
	}
	groups, err := os.ReadFile(filepath.Join(dir, "deploy", "prometheus", "rules.yaml"))
	if err != nil {
		return fmt.Errorf("reading the rules of Prometheus: %w", err)
	}
	rules := bytes.NewBufferString(fmt.Sprintf(written, "deploy/prometheus/rules.yaml"))
	rules.WriteString("apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: shop\nspec:\n")
	for line := range bytes.Lines(groups) {
		if len(bytes.TrimSpace(line)) > 0 {
			rules.WriteString("  ")
		}
		rules.Write(line)
	}
	for name, content := range map[string]*bytes.Buffer{"services.yaml": services, "rules.yaml": rules} {
		if err := os.WriteFile(filepath.Join(dir, "deploy", "kubernetes", "production", name), content.Bytes(), 0o644); err != nil { //nolint:gosec // everybody may read it
			return fmt.Errorf("writing the production overlay: %w", err)
		}
	}
	return nil
}
