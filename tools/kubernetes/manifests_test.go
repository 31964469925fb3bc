// Package kubernetes checks the manifests in deploy/kubernetes by the libraries that Kubernetes itself has. It is a module
// of its own, so that services do not get them.
package kubernetes

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	acmev1 "github.com/cert-manager/cert-manager/pkg/apis/acme/v1"
	certmanagerv1 "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	kedav1alpha1 "github.com/kedacore/keda/v2/apis/keda/v1alpha1"
	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/intstr"
	podsecurity "k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const folder = "../../deploy/kubernetes"

// operators are the groups of kinds that have no library: those of RabbitMQ's and PostgreSQL's operators.
var operators = []string{"rabbitmq.com", "postgresql.cnpg.io"}

// services are those that the repository has, in the order of their names.
func services(t *testing.T) []string {
	t.Helper()
	names := []string{"gateway"}
	folders, err := os.ReadDir("../../services")
	if err != nil || len(folders) == 0 {
		t.Fatalf("%d services, %v", len(folders), err)
	}
	for _, f := range folders {
		names = append(names, f.Name())
	}
	slices.Sort(names)
	return names
}

// strict decodes the kinds that it knows strictly: a field that there is not is an error.
func strict(t *testing.T) runtime.Decoder {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		appsv1.AddToScheme, batchv1.AddToScheme, corev1.AddToScheme, networkingv1.AddToScheme, policyv1.AddToScheme,
		certmanagerv1.AddToScheme, gatewayv1.Install, kedav1alpha1.AddToScheme, monitoringv1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	return serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
}

// overlay is what `kubectl apply -k` would apply.
type overlay struct {
	objects []metav1.Object
	custom  []*unstructured.Unstructured // of kinds that have no library
}

// build builds an overlay in a copy of the folder with made-up secrets in it.
func build(t *testing.T, name string) overlay {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(folder)); err != nil {
		t.Fatal(err)
	}
	writeSecrets(t, filepath.Join(dir, name, "secrets"))
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	decoder, o := strict(t), overlay{}
	for _, r := range built.Resources() {
		text, err := r.AsYAML()
		if err != nil {
			t.Fatal(err)
		}
		object, _, err := decoder.Decode(text, nil, nil)
		if runtime.IsNotRegisteredError(err) && slices.Contains(operators, r.GetGvk().Group) {
			fields, err := r.Map()
			if err != nil {
				t.Fatal(err)
			}
			o.custom = append(o.custom, &unstructured.Unstructured{Object: fields})
			continue
		}
		if err != nil {
			t.Errorf("%s %s: %v", r.GetKind(), r.GetName(), err)
			continue
		}
		o.objects = append(o.objects, object.(metav1.Object))
	}
	return o
}

func writeSecrets(t *testing.T, dir string) {
	t.Helper()
	for _, service := range services(t) {
		certs := filepath.Join(dir, "certs", service)
		if err := os.MkdirAll(certs, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, file := range []string{"cert.pem", "key.pem", "ca.pem"} {
			if err := os.WriteFile(filepath.Join(certs, file), []byte("made up"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	var env bytes.Buffer
	for _, name := range passwords(t) {
		fmt.Fprintf(&env, "%s=made-up\n", name)
	}
	if err := os.WriteFile(filepath.Join(dir, "shop.env"), env.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

// passwords are the names of what `shop secrets` makes.
func passwords(t *testing.T) []string {
	t.Helper()
	names := []string{"SHOP_ID_SECRET", "SHOP_OPERATOR_TOKENS", "POSTGRES_PASSWORD", "RABBITMQ_PASSWORD"}
	for _, service := range services(t) {
		names = append(names, amqpPassword(service))
	}
	schemas, err := filepath.Glob("../../db/*/*.sql")
	if err != nil || len(schemas) == 0 {
		t.Fatalf("%d migrations, %v", len(schemas), err)
	}
	for _, file := range schemas {
		names = append(names, strings.ToUpper(filepath.Base(filepath.Dir(file)))+"_PASSWORD")
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func amqpPassword(service string) string { return strings.ToUpper(service) + "_AMQP_PASSWORD" }

// secrets are the keys of the Secrets that an overlay has, or that others make in the cluster as it says.
func (o overlay) secrets(t *testing.T) map[string][]string {
	t.Helper()
	all := map[string][]string{
		"rabbitmq-default-user": {"username", "password"}, "db-superuser": {"username", "password"}, // of the operators
		"backups": {"ACCESS_KEY_ID", "SECRET_ACCESS_KEY"}, "shop": passwords(t), // made by hand
	}
	for _, c := range find[*certmanagerv1.Certificate](o) {
		all[c.Spec.SecretName] = []string{"tls.crt", "tls.key", "ca.crt"}
	}
	for _, s := range find[*corev1.Secret](o) {
		all[s.Name] = slices.Collect(maps.Keys(s.Data))
	}
	return all
}

func find[T metav1.Object](o overlay) (found []T) {
	for _, object := range o.objects {
		if t, ok := object.(T); ok {
			found = append(found, t)
		}
	}
	return found
}

// workload is whatever runs pods.
type workload struct {
	name   string
	serves bool // it does not end by itself
	pod    corev1.PodTemplateSpec
}

func (o overlay) workloads() (all []workload) {
	for _, d := range find[*appsv1.Deployment](o) {
		all = append(all, workload{d.Name, true, d.Spec.Template})
	}
	for _, s := range find[*appsv1.StatefulSet](o) {
		all = append(all, workload{s.Name, true, s.Spec.Template})
	}
	for _, j := range find[*batchv1.Job](o) {
		all = append(all, workload{j.Name, false, j.Spec.Template})
	}
	for _, c := range find[*batchv1.CronJob](o) {
		all = append(all, workload{c.Name, false, c.Spec.JobTemplate.Spec.Template})
	}
	return all
}

// services are the deployments of the services.
func (o overlay) services(t *testing.T) []*appsv1.Deployment {
	t.Helper()
	return slices.DeleteFunc(find[*appsv1.Deployment](o), func(d *appsv1.Deployment) bool { return !slices.Contains(services(t), d.Name) })
}

// replicas are the fewest that a deployment has.
func (o overlay) replicas(d *appsv1.Deployment) int32 {
	if d.Spec.Replicas != nil {
		return *d.Spec.Replicas
	}
	for _, s := range find[*kedav1alpha1.ScaledObject](o) {
		if s.Spec.ScaleTargetRef.Name == d.Name {
			return *s.Spec.MinReplicaCount
		}
	}
	return 1
}

// eachOverlay runs a test on every overlay there is.
func eachOverlay(t *testing.T, test func(t *testing.T, o overlay)) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(folder, "*", "kustomization.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	tested := 0
	for _, file := range found {
		if name := filepath.Base(filepath.Dir(file)); name != "base" {
			tested++
			t.Run(name, func(t *testing.T) { test(t, build(t, name)) })
		}
	}
	if tested == 0 {
		t.Fatal("there is no overlay")
	}
}

func TestManifests_EveryServiceIsThere(t *testing.T) {
	eachOverlay(t, func(t *testing.T, o overlay) {
		var names []string
		for _, d := range o.services(t) {
			names = append(names, d.Name)
		}
		slices.Sort(names)
		if want := services(t); !slices.Equal(names, want) {
			t.Errorf("deployments are %v, want %v", names, want)
		}
	})
}

func TestManifests_AllPodsAreAdmittedIfTheStandardIsRestricted(t *testing.T) {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	restricted := podsecurity.LevelVersion{Level: podsecurity.LevelRestricted, Version: podsecurity.LatestVersion()}
	eachOverlay(t, func(t *testing.T, o overlay) {
		for _, w := range o.workloads() {
			result := policy.AggregateCheckResults(evaluator.EvaluatePod(restricted, &w.pod.ObjectMeta, &w.pod.Spec))
			if !result.Allowed {
				t.Errorf("%s: %s", w.name, result.ForbiddenDetail())
			}
		}
		for _, n := range find[*corev1.Namespace](o) {
			if n.Labels[podsecurity.EnforceLevelLabel] != string(podsecurity.LevelRestricted) {
				t.Errorf("namespace %s does not enforce it", n.Name)
			}
		}
	})
}

func TestManifests_EveryContainerIsBoundedAndConfined(t *testing.T) {
	eachOverlay(t, func(t *testing.T, o overlay) {
		for _, w := range o.workloads() {
			if auto := w.pod.Spec.AutomountServiceAccountToken; auto == nil || *auto {
				t.Errorf("%s has a service account token", w.name)
			}
			for _, c := range slices.Concat(w.pod.Spec.InitContainers, w.pod.Spec.Containers) {
				for _, problem := range containerProblems(c, w.serves) {
					t.Errorf("%s, container %s: %s", w.name, c.Name, problem)
				}
			}
		}
	})
}

func containerProblems(c corev1.Container, serves bool) (problems []string) {
	missing := func(is bool, problem string) {
		if is {
			problems = append(problems, problem)
		}
	}
	security := c.SecurityContext
	missing(security == nil || security.ReadOnlyRootFilesystem == nil || !*security.ReadOnlyRootFilesystem, "its root file system is not read-only")
	missing(c.Resources.Requests.Cpu().IsZero() || c.Resources.Requests.Memory().IsZero(), "no requests of CPU and memory")
	missing(c.Resources.Limits.Memory().IsZero(), "no limit of memory")
	missing(c.Resources.Limits.Memory().Cmp(*c.Resources.Requests.Memory()) < 0, "its limit of memory is below its request")
	tag := c.Image[strings.LastIndex(c.Image, "/")+1:]
	missing(!strings.ContainsAny(tag, ":@") || strings.HasSuffix(tag, ":latest"), "its image "+c.Image+" has no version")
	if serves {
		missing(c.StartupProbe == nil, "no startup probe")
		missing(c.ReadinessProbe == nil, "no readiness probe")
		missing(c.LivenessProbe == nil, "no liveness probe")
	}
	return problems
}

// A probe asks what a service answers: /livez depends on nothing, or a dependency that is away would restart everything.
func TestManifests_ProbesMeanWhatTheySay(t *testing.T) {
	eachOverlay(t, func(t *testing.T, o overlay) {
		for _, d := range find[*appsv1.Deployment](o) {
			c := d.Spec.Template.Spec.Containers[0]
			for what, probe := range map[string]struct {
				probe *corev1.Probe
				path  string
			}{"startup": {c.StartupProbe, "/livez"}, "readiness": {c.ReadinessProbe, "/readyz"}, "liveness": {c.LivenessProbe, "/livez"}} {
				if get := probe.probe.HTTPGet; get == nil || get.Path != probe.path || get.Port != intstr.FromString("admin") {
					t.Errorf("%s: the %s probe asks %v, want %s", d.Name, what, get, probe.path)
				}
			}
			if c.ReadinessProbe.TimeoutSeconds < 3 { // the service takes up to 2 s to ask its dependencies
				t.Errorf("%s: readiness has %d s to answer", d.Name, c.ReadinessProbe.TimeoutSeconds)
			}
		}
	})
}

func TestManifests_ARolloutAndADrainedNodeLeaveAReplica(t *testing.T) {
	eachOverlay(t, func(t *testing.T, o overlay) {
		for _, d := range o.services(t) {
			if n := o.replicas(d); n < 2 {
				t.Errorf("%s has %d replicas", d.Name, n)
			}
			if r := d.Spec.Strategy.RollingUpdate; r == nil || r.MaxUnavailable.IntValue() != 0 {
				t.Errorf("%s: a rollout takes a replica away before its successor is ready", d.Name)
			}
			if !slices.ContainsFunc(find[*policyv1.PodDisruptionBudget](o), func(b *policyv1.PodDisruptionBudget) bool {
				return selects(t, b.Spec.Selector, d.Spec.Template.Labels) && b.Spec.MaxUnavailable.IntValue() == 1
			}) {
				t.Errorf("%s has no disruption budget", d.Name)
			}
			for _, over := range []string{corev1.LabelHostname, corev1.LabelTopologyZone} {
				if !slices.ContainsFunc(d.Spec.Template.Spec.TopologySpreadConstraints, func(c corev1.TopologySpreadConstraint) bool {
					return c.TopologyKey == over && c.WhenUnsatisfiable == corev1.ScheduleAnyway && selects(t, c.LabelSelector, d.Spec.Template.Labels)
				}) {
					t.Errorf("%s is not spread over %s, or cannot be scheduled without", d.Name, over)
				}
			}
		}
	})
}

// Nobody is ready while the broker is away. Who is not ready does nothing, and holds up no node that is drained.
func TestManifests_ANodeIsDrainedWhileTheBrokerIsAway(t *testing.T) {
	eachOverlay(t, func(t *testing.T, o overlay) {
		for _, d := range o.services(t) {
			for _, b := range find[*policyv1.PodDisruptionBudget](o) {
				if p := b.Spec.UnhealthyPodEvictionPolicy; selects(t, b.Spec.Selector, d.Spec.Template.Labels) && (p == nil || *p != policyv1.AlwaysAllow) {
					t.Errorf("the budget of %s keeps replicas that are not ready", d.Name)
				}
			}
		}
	})
}

// The delay and the stop that follows it, which takes 10 s at most, end before Kubernetes kills.
func TestManifests_AStopHasTheTimeThatItTakes(t *testing.T) {
	eachOverlay(t, func(t *testing.T, o overlay) {
		for _, d := range o.services(t) {
			config := o.config(t, d.Spec.Template.Spec.Containers[0])
			delay, err := time.ParseDuration(config["SHUTDOWN_DELAY"])
			if err != nil || delay < 5*time.Second {
				t.Errorf("%s: SHUTDOWN_DELAY is %q, want what the endpoints of a service take to change", d.Name, config["SHUTDOWN_DELAY"])
			}
			if grace := time.Duration(*d.Spec.Template.Spec.TerminationGracePeriodSeconds) * time.Second; grace < delay+10*time.Second {
				t.Errorf("%s is killed after %s, and takes %s and 10 s", d.Name, grace, delay)
			}
		}
	})
}

// config is what a container gets from ConfigMaps and Secrets as a whole.
func (o overlay) config(t *testing.T, container corev1.Container) map[string]string {
	t.Helper()
	values := map[string]string{}
	for _, from := range container.EnvFrom {
		if from.SecretRef != nil {
			for _, key := range o.secrets(t)[from.SecretRef.Name] {
				values[key] = "password"
			}
			continue
		}
		for _, c := range find[*corev1.ConfigMap](o) {
			if c.Name == from.ConfigMapRef.Name {
				maps.Copy(values, c.Data)
			}
		}
	}
	return values
}

// environment is what a container gets, as it sees it.
func (o overlay) environment(t *testing.T, w workload, c corev1.Container) map[string]string {
	t.Helper()
	secrets, known := o.secrets(t), o.config(t, c)
	for _, v := range c.Env {
		known[v.Name] = os.Expand(strings.NewReplacer("$(", "${", ")", "}").Replace(v.Value), func(name string) string {
			if _, ok := known[name]; !ok {
				t.Errorf("%s: %s refers to $(%s), which comes later or not at all", w.name, v.Name, name)
			}
			return known[name]
		})
		if from := v.ValueFrom; from != nil {
			ref := from.SecretKeyRef
			if optional := ref.Optional != nil && *ref.Optional; !optional && !slices.Contains(secrets[ref.Name], ref.Key) {
				t.Errorf("%s: no secret %s has the key %s", w.name, ref.Name, ref.Key)
			}
			known[v.Name] = "password"
		}
	}
	return known
}

// Otherwise each start makes what is on a volume the group's to write, and PostgreSQL and Erlang refuse such files.
func TestManifests_AStartLeavesWhatIsOnAVolumeAsItIs(t *testing.T) {
	eachOverlay(t, func(t *testing.T, o overlay) {
		for _, s := range find[*appsv1.StatefulSet](o) {
			security := s.Spec.Template.Spec.SecurityContext
			if p := security.FSGroupChangePolicy; security.FSGroup != nil && (p == nil || *p != corev1.FSGroupChangeOnRootMismatch) {
				t.Errorf("%s: fsGroupChangePolicy is not OnRootMismatch", s.Name)
			}
		}
	})
}

// What a value refers to is there: a $(NAME) that is not stays as it is, and a key that is not keeps the pod from starting.
func TestManifests_ValuesAndSecretsThatAreReferredToAreThere(t *testing.T) {
	eachOverlay(t, func(t *testing.T, o overlay) {
		for _, w := range o.workloads() {
			for _, c := range slices.Concat(w.pod.Spec.InitContainers, w.pod.Spec.Containers) {
				known := o.environment(t, w, c)
				for name, scheme := range map[string]string{"AMQP_URL": "amqp", "DATABASE_URL": "postgres://", "AMQP_MANAGEMENT_URL": "http"} {
					if url, given := known[name]; given && (!strings.HasPrefix(url, scheme) || strings.ContainsAny(url, " $")) {
						t.Errorf("%s: %s is %q", w.name, name, url)
					}
				}
				if c.Name == "provision" {
					for _, service := range services(t) {
						if known[amqpPassword(service)] == "" {
							t.Errorf("the broker's user %s gets no password", service)
						}
					}
				}
			}
			for _, v := range w.pod.Spec.Volumes {
				if v.Secret != nil && len(o.secrets(t)[v.Secret.SecretName]) == 0 {
					t.Errorf("%s: there is no secret %s", w.name, v.Secret.SecretName)
				}
			}
		}
	})
}

// Whoever has a queue is scaled by it, everybody else by CPU, and nothing that is scaled has a number of replicas, which each
// `kubectl apply` would set again.
func TestManifests_WhatIsScaledIsLeftToWhatScalesIt(t *testing.T) {
	var broker struct {
		Queues []struct{ Name string } `json:"queues"`
	}
	read(t, "../../topology/definitions.json", &broker)
	var queues []string
	for _, q := range broker.Queues {
		queues = append(queues, q.Name)
	}
	o := build(t, "production")
	for _, d := range o.services(t) {
		if d.Spec.Replicas != nil {
			t.Errorf("%s has %d replicas", d.Name, *d.Spec.Replicas)
		}
		scaled := slices.DeleteFunc(find[*kedav1alpha1.ScaledObject](o), func(s *kedav1alpha1.ScaledObject) bool { return s.Spec.ScaleTargetRef.Name != d.Name })
		if len(scaled) != 1 {
			t.Errorf("%s is scaled by %d objects", d.Name, len(scaled))
			continue
		}
		by := scaled[0].Spec.Triggers[0]
		if hasQueue := slices.Contains(queues, d.Name); hasQueue && by.Metadata["queueName"] != d.Name || !hasQueue && by.Type != "cpu" {
			t.Errorf("%s is scaled by %v", d.Name, by)
		}
	}
}

var poolSize = regexp.MustCompile(`maxConns = (\d+)`)

// Otherwise the replicas that come last, just when there is most to do, are refused by the database.
func TestManifests_TheDatabaseHasAConnectionForWhateverIsScaledUp(t *testing.T) {
	source, err := os.ReadFile("../../platform/postgres/postgres.go")
	if err != nil {
		t.Fatal(err)
	}
	size := poolSize.FindSubmatch(source)
	if size == nil {
		t.Fatal("the size of a pool is not where it was")
	}
	pool, err := strconv.Atoi(string(size[1]))
	if err != nil {
		t.Fatal(err)
	}
	const reserve = 20 // for superusers, the operator, the job setup, and whoever looks
	o, needed := build(t, "production"), reserve
	for _, d := range find[*appsv1.Deployment](o) {
		if !slices.ContainsFunc(d.Spec.Template.Spec.Containers[0].Env, func(v corev1.EnvVar) bool { return v.Name == "DATABASE_URL" }) {
			continue
		}
		most, surge := 1, 1
		if d.Spec.Replicas != nil {
			most = int(*d.Spec.Replicas)
		}
		for _, s := range find[*kedav1alpha1.ScaledObject](o) {
			if s.Spec.ScaleTargetRef.Name == d.Name {
				most = int(*s.Spec.MaxReplicaCount)
			}
		}
		if r := d.Spec.Strategy.RollingUpdate; r != nil && r.MaxSurge != nil {
			surge = r.MaxSurge.IntValue()
		}
		needed += (most + surge) * pool
	}
	if needed <= reserve {
		t.Fatal("nobody has a database")
	}
	text, _, err := unstructured.NestedString(o.one(t, "Cluster").Object, "spec", "postgresql", "parameters", "max_connections")
	if err != nil {
		t.Fatal(err)
	}
	if has, err := strconv.Atoi(text); err != nil || has < needed {
		t.Errorf("max_connections is %q, want %d at least", text, needed)
	}
}

// The alerts are those of deploy/prometheus, and the services answer on the port that is scraped.
func TestManifests_PrometheusWatchesEveryServiceWithTheRulesOfThere(t *testing.T) {
	o := build(t, "production")
	var want monitoringv1.PrometheusRuleSpec
	read(t, "../../deploy/prometheus/rules.yaml", &want)
	if rules := find[*monitoringv1.PrometheusRule](o); len(rules) != 1 || len(want.Groups) == 0 || !reflect.DeepEqual(rules[0].Spec, want) {
		t.Errorf("the rules are not those of deploy/prometheus: run make generate")
	}
	for _, d := range find[*appsv1.Deployment](o) { // the audit, too
		if !slices.ContainsFunc(find[*monitoringv1.PodMonitor](o), func(m *monitoringv1.PodMonitor) bool {
			return selects(t, &m.Spec.Selector, d.Spec.Template.Labels) && d.Spec.Template.Labels[m.Spec.JobLabel] == d.Name &&
				slices.ContainsFunc(d.Spec.Template.Spec.Containers[0].Ports, func(p corev1.ContainerPort) bool { return p.Name == *m.Spec.PodMetricsEndpoints[0].Port })
		}) {
			t.Errorf("no job %s is scraped", d.Name)
		}
	}
}

// The audit of each minute compared all orders, which takes too long in a large shop, and production had no other.
func TestManifests_TheAuditOfEachMinuteIsOfADayAndThatOfEachNightOfAll(t *testing.T) {
	eachOverlay(t, func(t *testing.T, o overlay) {
		nights := find[*batchv1.CronJob](o)
		if len(nights) != 1 || !slices.Equal(nights[0].Spec.JobTemplate.Spec.Template.Spec.Containers[0].Args, []string{"audit"}) {
			t.Errorf("%d jobs are repeated, not one that audits everything", len(nights))
		}
		for _, d := range find[*appsv1.Deployment](o) {
			if args := d.Spec.Template.Spec.Containers[0].Args; slices.Contains(args, "--every") && !slices.Contains(args, "--since") {
				t.Errorf("%s audits all orders each time: %v", d.Name, args)
			}
		}
	})
}

// Without the path metrics of all queues are added up, without the name dashboards do not find them.
func TestManifests_BrokersAreScrapedAsDashboardsAskForThem(t *testing.T) {
	type job struct {
		Name string `json:"job_name"`
		Path string `json:"metrics_path"`
	}
	var compose struct {
		Jobs []job `json:"scrape_configs"`
	}
	read(t, "../../deploy/prometheus/compose.yaml", &compose)
	i := slices.IndexFunc(compose.Jobs, func(j job) bool { return j.Name == "rabbitmq" })
	if i < 0 || compose.Jobs[i].Path == "" {
		t.Fatalf("compose scrapes %v", compose.Jobs)
	}
	o := build(t, "production")
	pod := map[string]string{"app.kubernetes.io/name": o.one(t, "RabbitmqCluster").GetName(), "shop.example/role": "broker"} // the first is the operator's
	monitors := slices.DeleteFunc(find[*monitoringv1.PodMonitor](o), func(m *monitoringv1.PodMonitor) bool { return !selects(t, &m.Spec.Selector, pod) })
	if len(monitors) != 1 {
		t.Fatalf("%d monitors select brokers", len(monitors))
	}
	if got := (job{pod[monitors[0].Spec.JobLabel], monitors[0].Spec.PodMetricsEndpoints[0].Path}); got != compose.Jobs[i] {
		t.Errorf("brokers are scraped as %+v, want %+v", got, compose.Jobs[i])
	}
}

// read decodes a file.
func read(t *testing.T, file string, into any) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, into); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

func TestManifests_EverySettingIsWhereItBelongs(t *testing.T) {
	var settings corev1.ConfigMap
	read(t, folder+"/production/settings.yaml", &settings)
	o, set := build(t, "production"), settings.Data
	for _, w := range o.workloads() {
		for _, c := range slices.Concat(w.pod.Spec.InitContainers, w.pod.Spec.Containers) {
			if !strings.HasPrefix(c.Image, set["registry"]+"/shop") || !strings.HasSuffix(c.Image, ":"+set["version"]) {
				t.Errorf("%s: the image is %s", w.name, c.Image)
			}
		}
	}
	var hosts []string
	for _, g := range find[*gatewayv1.Gateway](o) {
		for _, l := range g.Spec.Listeners {
			hosts = append(hosts, string(*l.Hostname))
		}
		if string(g.Spec.GatewayClassName) != set["gatewayClass"] {
			t.Errorf("the class of the gateway is %s", g.Spec.GatewayClassName)
		}
	}
	for _, r := range find[*gatewayv1.HTTPRoute](o) {
		hosts = append(hosts, string(r.Spec.Hostnames[0]))
	}
	for _, r := range find[*gatewayv1.GRPCRoute](o) {
		hosts = append(hosts, string(r.Spec.Hostnames[0]))
	}
	for _, c := range find[*certmanagerv1.Certificate](o) {
		if c.Spec.IssuerRef.Kind == "ClusterIssuer" {
			hosts = append(hosts, c.Spec.DNSNames...)
			if c.Spec.IssuerRef.Name != set["clusterIssuer"] {
				t.Errorf("the issuer of certificate %s is %s", c.Name, c.Spec.IssuerRef.Name)
			}
		}
	}
	host, grpcHost := set["hostname"], set["grpcHostname"]
	if want := []string{host, grpcHost, host, grpcHost, host, grpcHost}; !slices.Equal(hosts, want) {
		t.Errorf("hosts of listeners, routes and certificate are %v, want %v", hosts, want)
	}
	for _, c := range o.custom {
		if c.GetKind() != "Cluster" {
			continue
		}
		for field, setting := range map[string]string{"destinationPath": "backups", "endpointURL": "backupEndpoint"} {
			if got, _, err := unstructured.NestedString(c.Object, "spec", "backup", "barmanObjectStore", field); err != nil || got != set[setting] {
				t.Errorf("%s of the backups is %q, %v", field, got, err)
			}
		}
	}
}

func TestManifests_NothingIsReachableThatIsNotNamed(t *testing.T) {
	eachOverlay(t, func(t *testing.T, o overlay) {
		policies := find[*networkingv1.NetworkPolicy](o)
		if !slices.ContainsFunc(policies, func(p *networkingv1.NetworkPolicy) bool {
			return len(p.Spec.PodSelector.MatchLabels)+len(p.Spec.PodSelector.MatchExpressions)+len(p.Spec.Ingress)+len(p.Spec.Egress) == 0 && len(p.Spec.PolicyTypes) == 2
		}) {
			t.Error("there is no policy that denies everything else")
		}
		for _, w := range o.workloads() {
			if !slices.ContainsFunc(policies, func(p *networkingv1.NetworkPolicy) bool {
				return len(p.Spec.Ingress)+len(p.Spec.Egress) > 0 && p.Name != "names" && selects(t, &p.Spec.PodSelector, w.pod.Labels)
			}) {
				t.Errorf("%s may reach nobody, nor anybody it", w.name)
			}
		}
	})
}

// Where policies are enforced the job that prepares the broker could not reach it: its policy had the port without TLS alone.
func TestManifests_WhatAContainerIsToldToReachLetsItIn(t *testing.T) {
	eachOverlay(t, func(t *testing.T, o overlay) {
		for _, w := range o.workloads() {
			for _, c := range slices.Concat(w.pod.Spec.InitContainers, w.pod.Spec.Containers) {
				for name, value := range o.environment(t, w, c) {
					for _, address := range addresses(t, w, name, value) {
						host, port, err := net.SplitHostPort(address)
						if err != nil {
							t.Errorf("%s: %s: %v", w.name, name, err)
							continue
						}
						number, err := strconv.Atoi(port)
						if pod := o.behind(t, host); err != nil || !o.sends(t, w.pod.Labels, pod, number) || !o.accepts(t, pod, w.pod.Labels, number) {
							t.Errorf("%s cannot reach %s of %s: it may: %v, %s lets it in: %v", w.name, address, name,
								o.sends(t, w.pod.Labels, pod, number), host, o.accepts(t, pod, w.pod.Labels, number))
						}
					}
				}
			}
		}
	})
}

// addresses are those that a variable names, if the workload calls them.
func addresses(t *testing.T, w workload, name, value string) []string {
	t.Helper()
	switch {
	case strings.HasSuffix(name, "_URL"):
		u, err := url.Parse(value)
		if err != nil {
			t.Fatalf("%s: %s: %v", w.name, name, err)
		}
		return strings.Split(u.Host, ",")
	case name == "SHOP_SERVER", strings.HasSuffix(name, "_ADDR") && w.pod.Labels["shop.example/role"] != "" && !strings.HasPrefix(value, w.name+":") && !strings.HasPrefix(value, ":"):
		return strings.Split(value, ",")
	}
	return nil
}

// behind are the labels of the pods of a service, also of those that operators make: rabbitmq and rabbitmq-nodes, db-rw.
func (o overlay) behind(t *testing.T, host string) map[string]string {
	t.Helper()
	for _, s := range find[*corev1.Service](o) {
		for _, w := range o.workloads() {
			if s.Name == host && labels.SelectorFromSet(s.Spec.Selector).Matches(labels.Set(w.pod.Labels)) {
				return w.pod.Labels
			}
		}
	}
	for _, c := range o.custom {
		switch name := c.GetName(); {
		case c.GetKind() == "RabbitmqCluster" && slices.Contains([]string{name, name + "-nodes"}, host):
			return map[string]string{"app.kubernetes.io/name": name, "shop.example/role": "broker"}
		case c.GetKind() == "Cluster" && host == name+"-rw":
			return map[string]string{"cnpg.io/cluster": name, "shop.example/role": "database"}
		}
	}
	t.Errorf("nobody has the name %s", host)
	return nil
}

// CloudNativePG gives the pods of its jobs labels of its own only, not those that the pods of the database inherit.
func TestManifests_TheJobsThatCreateTheDatabaseReachWhatTheyNeed(t *testing.T) {
	o := build(t, "production")
	cluster := o.one(t, "Cluster")
	inherited, _, err := unstructured.NestedStringMap(cluster.Object, "spec", "inheritedMetadata", "labels")
	if err != nil || len(inherited) == 0 {
		t.Fatalf("pods of the database inherit %v, %v", inherited, err)
	}
	database := map[string]string{"cnpg.io/cluster": cluster.GetName(), "cnpg.io/podRole": "instance"}
	maps.Copy(database, inherited)
	for _, role := range []string{"initdb", "join", "full-recovery"} {
		job := map[string]string{"cnpg.io/cluster": cluster.GetName(), "cnpg.io/jobRole": role}
		for _, port := range []int{443, 6443} {
			if !o.sends(t, job, nil, port) {
				t.Errorf("the job %s cannot reach the API of Kubernetes at port %d", role, port)
			}
		}
		if !o.sends(t, job, database, 5432) || !o.accepts(t, database, job, 5432) {
			t.Errorf("the job %s cannot reach the database", role)
		}
	}
	service := o.services(t)[slices.IndexFunc(o.services(t), func(d *appsv1.Deployment) bool { return d.Name == "order" })].Spec.Template.Labels
	if !o.sends(t, service, database, 5432) || !o.accepts(t, database, service, 5432) {
		t.Error("order cannot reach the database")
	}
}

// An issuer with HTTP-01 asks a pod that cert-manager makes beside the certificate, at a port of its own.
func TestManifests_TheIssuerOfThePublicCertificateReachesItsProof(t *testing.T) {
	solver := map[string]string{acmev1.SolverIdentificationLabelKey: "true"}
	if o := build(t, "production"); !o.accepts(t, solver, nil, 8089) {
		t.Error("nobody reaches the pods that prove the names of the shop")
	}
}

var applyFirst = regexp.MustCompile(`kubectl apply -k \S+ --selector (\S+)`)

// An upgrade applies the job first, by the selector that the document names, and nothing that replaces a running service.
func TestManifests_TheSelectorOfAnUpgradeFindsTheJobAndWhatItRefersTo(t *testing.T) {
	page, err := os.ReadFile("../../docs/kubernetes.md")
	if err != nil {
		t.Fatal(err)
	}
	command := applyFirst.FindSubmatch(page)
	if command == nil {
		t.Fatal("docs/kubernetes.md has no command with a selector")
	}
	selector, err := labels.Parse(string(command[1]))
	if err != nil {
		t.Fatal(err)
	}
	eachOverlay(t, func(t *testing.T, o overlay) {
		applied := overlay{objects: slices.DeleteFunc(slices.Clone(o.objects), func(object metav1.Object) bool {
			return !selector.Matches(labels.Set(object.GetLabels()))
		})}
		w := applied.workloads()
		if len(w) != 1 || w[0].name != "setup" {
			t.Fatalf("%s selects %d workloads, want the job setup alone", selector, len(w))
		}
		var configs, secrets []string
		for _, c := range slices.Concat(w[0].pod.Spec.InitContainers, w[0].pod.Spec.Containers) {
			for _, from := range c.EnvFrom {
				if from.ConfigMapRef != nil {
					configs = append(configs, from.ConfigMapRef.Name)
				} else {
					secrets = append(secrets, from.SecretRef.Name)
				}
			}
			for _, v := range c.Env {
				if v.ValueFrom != nil {
					secrets = append(secrets, v.ValueFrom.SecretKeyRef.Name)
				}
			}
		}
		if len(configs) == 0 || len(secrets) == 0 {
			t.Fatalf("the job refers to ConfigMaps %v and Secrets %v", configs, secrets)
		}
		for _, name := range configs {
			if !slices.ContainsFunc(find[*corev1.ConfigMap](applied), func(c *corev1.ConfigMap) bool { return c.Name == name }) {
				t.Errorf("%s does not select the ConfigMap %s", selector, name)
			}
		}
		for _, s := range find[*corev1.Secret](o) { // others are made in the cluster
			if slices.Contains(secrets, s.Name) && !slices.ContainsFunc(find[*corev1.Secret](applied), func(a *corev1.Secret) bool { return a.Name == s.Name }) {
				t.Errorf("%s does not select the Secret %s", selector, s.Name)
			}
		}
	})
}

var pause = regexp.MustCompile(`kubectl -n shop annotate scaledobject (.+) (\S+)=0\n`)

// KEDA starts again what kubectl scale has stopped, and a restore must not run into services that write.
func TestManifests_TheDocumentStopsWhateverHasADatabase(t *testing.T) {
	page, err := os.ReadFile("../../docs/kubernetes.md")
	if err != nil {
		t.Fatal(err)
	}
	command := pause.FindSubmatch(page)
	if command == nil || string(command[2]) != kedav1alpha1.PausedReplicasAnnotation {
		t.Fatalf("docs/kubernetes.md pauses no ScaledObjects by %s: %q", kedav1alpha1.PausedReplicasAnnotation, command)
	}
	o := build(t, "production")
	var want []string
	for _, d := range o.services(t) {
		if !slices.ContainsFunc(d.Spec.Template.Spec.Containers[0].Env, func(v corev1.EnvVar) bool { return v.Name == "DATABASE_URL" }) {
			continue
		}
		for _, s := range find[*kedav1alpha1.ScaledObject](o) {
			if s.Spec.ScaleTargetRef.Name == d.Name {
				want = append(want, s.Name)
			}
		}
	}
	names := strings.Fields(string(command[1]))
	slices.Sort(names)
	if slices.Sort(want); !slices.Equal(names, want) {
		t.Errorf("it stops %v, want %v", names, want)
	}
}

var undo = regexp.MustCompile(`kubectl -n shop rollout undo deployment (.+)\n`)

// Going back is by deployments alone: the job of the release before would take rights from those that still run.
func TestManifests_TheDocumentGoesBackWithEveryService(t *testing.T) {
	page, err := os.ReadFile("../../docs/kubernetes.md")
	if err != nil {
		t.Fatal(err)
	}
	command := undo.FindSubmatch(page)
	if command == nil {
		t.Fatal("docs/kubernetes.md does not say how to go back")
	}
	names := strings.Fields(string(command[1]))
	if slices.Sort(names); !slices.Equal(names, services(t)) {
		t.Errorf("it goes back with %v, want %v", names, services(t))
	}
}

var executes = regexp.MustCompile(`kubectl -n shop exec deployment/(\S+) -- (\S+) `)

// shop outbox, the only mend for parked events, needs the databases, which no machine outside reaches.
func TestManifests_TheDocumentsCommandsRunWhereDatabaseAndGatewayAre(t *testing.T) {
	page, err := os.ReadFile("../../docs/kubernetes.md")
	if err != nil {
		t.Fatal(err)
	}
	o, commands := build(t, "production"), executes.FindAllSubmatch(page, -1)
	if len(commands) < 2 {
		t.Fatalf("docs/kubernetes.md has %d commands in pods", len(commands))
	}
	for _, command := range commands {
		i := slices.IndexFunc(o.workloads(), func(w workload) bool { return w.name == string(command[1]) && w.serves })
		if i < 0 {
			t.Errorf("no deployment has the name %s", command[1])
			continue
		}
		w := o.workloads()[i]
		env := o.environment(t, w, w.pod.Spec.Containers[0])
		if string(command[2]) != "/shop" || env["DATABASE_URL"] == "" || env["SHOP_SERVER"] == "" {
			t.Errorf("%q has the database %q and the shop %q", command[0], env["DATABASE_URL"], env["SHOP_SERVER"])
		}
	}
}

// OTEL_EXPORTER_OTLP_ENDPOINT names a collector where metrics are looked at, too, by either protocol.
func TestManifests_WhateverSendsTracesReachesTheCollector(t *testing.T) {
	monitoring := map[string]string{corev1.LabelMetadataName: "monitoring"}
	eachOverlay(t, func(t *testing.T, o overlay) {
		for _, d := range o.services(t) {
			for _, port := range []int{4317, 4318} {
				if !slices.ContainsFunc(find[*networkingv1.NetworkPolicy](o), func(p *networkingv1.NetworkPolicy) bool {
					return selects(t, &p.Spec.PodSelector, d.Spec.Template.Labels) && slices.ContainsFunc(p.Spec.Egress, func(r networkingv1.NetworkPolicyEgressRule) bool {
						return admits(t, nil, r.Ports, nil, port) && slices.ContainsFunc(r.To, func(to networkingv1.NetworkPolicyPeer) bool {
							return to.PodSelector == nil && to.NamespaceSelector != nil && selects(t, to.NamespaceSelector, monitoring)
						})
					})
				}) {
					t.Errorf("%s does not reach a collector at port %d", d.Name, port)
				}
			}
		}
	})
}

var examplePolicy = regexp.MustCompile("(?ms)^```yaml\n(.*?kind: NetworkPolicy\n.*?)^```$")

// Where the issuer of tokens is, only the shop's operators know: they copy the policy of the document.
func TestManifests_ThePolicyForTheIssuerIsThatOfTheGateway(t *testing.T) {
	page, err := os.ReadFile("../../docs/kubernetes.md")
	if err != nil {
		t.Fatal(err)
	}
	example := examplePolicy.FindSubmatch(page)
	if example == nil {
		t.Fatal("docs/kubernetes.md has no policy")
	}
	object, _, err := strict(t).Decode(example[1], nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	issuer := object.(*networkingv1.NetworkPolicy)
	eachOverlay(t, func(t *testing.T, o overlay) {
		for _, d := range o.services(t) {
			if is, want := selects(t, &issuer.Spec.PodSelector, d.Spec.Template.Labels), d.Name == "gateway"; is != want || issuer.Namespace != d.Namespace {
				t.Errorf("in namespace %q it selects %s: %v, want %v in %q", issuer.Namespace, d.Name, is, want, d.Namespace)
			}
		}
		gateway := o.services(t)[slices.IndexFunc(o.services(t), func(d *appsv1.Deployment) bool { return d.Name == "gateway" })]
		with := overlay{objects: append(slices.Clone(o.objects), issuer)}
		outside := func(o overlay) bool {
			return slices.ContainsFunc(find[*networkingv1.NetworkPolicy](o), func(p *networkingv1.NetworkPolicy) bool {
				return selects(t, &p.Spec.PodSelector, gateway.Spec.Template.Labels) && slices.ContainsFunc(p.Spec.Egress, func(r networkingv1.NetworkPolicyEgressRule) bool {
					return admits(t, nil, r.Ports, nil, 443) && slices.ContainsFunc(r.To, func(to networkingv1.NetworkPolicyPeer) bool { return to.IPBlock != nil })
				})
			})
		}
		if outside(o) || !outside(with) {
			t.Errorf("the gateway reaches the issuer without the policy: %v, with it: %v", outside(o), outside(with))
		}
	})
}

// What a cluster of brokers needs was measured with that of compose (docs/adr/0039-a-cluster-that-a-node-may-leave.md).
func TestManifests_BrokersAreConfiguredAsTheClusterThatWasMeasured(t *testing.T) {
	var measured struct {
		Configs map[string]struct{ Content string } `json:"configs"`
	}
	read(t, "../../deploy/compose/cluster.yaml", &measured)
	broker, _, err := unstructured.NestedStringMap(build(t, "production").one(t, "RabbitmqCluster").Object, "spec", "rabbitmq")
	if err != nil {
		t.Fatal(err)
	}
	settings := func(text string) (lines []string) {
		for line := range strings.Lines(text) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "cluster_formation.") { // the operator's
				lines = append(lines, line)
			}
		}
		return lines
	}
	want := settings(measured.Configs["rabbitmq-cluster"].Content)
	if len(want) < 3 {
		t.Fatalf("the cluster of compose has %v", want)
	}
	has := settings(broker["additionalConfig"])
	for _, line := range want {
		if !slices.Contains(has, line) {
			t.Errorf("rabbitmq.conf of the production overlay lacks %q", line)
		}
	}
	if got, want := strings.TrimSpace(broker["advancedConfig"]), strings.TrimSpace(measured.Configs["rabbitmq-advanced"].Content); got != want || want == "" {
		t.Errorf("advanced.config is %q, that of compose %q", got, want)
	}
}

// one is the only object of a kind that has no library.
func (o overlay) one(t *testing.T, kind string) *unstructured.Unstructured {
	t.Helper()
	found := slices.DeleteFunc(slices.Clone(o.custom), func(c *unstructured.Unstructured) bool { return c.GetKind() != kind })
	if len(found) != 1 {
		t.Fatalf("there are %d objects of kind %s", len(found), kind)
	}
	return found[0]
}

// sends is whether policies let pods with these labels reach others at a port; to is nil for what has no pod.
func (o overlay) sends(t *testing.T, from, to map[string]string, port int) bool {
	t.Helper()
	return slices.ContainsFunc(find[*networkingv1.NetworkPolicy](o), func(p *networkingv1.NetworkPolicy) bool {
		return selects(t, &p.Spec.PodSelector, from) && slices.ContainsFunc(p.Spec.Egress, func(r networkingv1.NetworkPolicyEgressRule) bool {
			return admits(t, r.To, r.Ports, to, port)
		})
	})
}

// accepts is whether policies let others reach pods with these labels.
func (o overlay) accepts(t *testing.T, to, from map[string]string, port int) bool {
	t.Helper()
	return slices.ContainsFunc(find[*networkingv1.NetworkPolicy](o), func(p *networkingv1.NetworkPolicy) bool {
		return selects(t, &p.Spec.PodSelector, to) && slices.ContainsFunc(p.Spec.Ingress, func(r networkingv1.NetworkPolicyIngressRule) bool {
			return admits(t, r.From, o.numbered(r.Ports, to), from, port)
		})
	})
}

// numbered are ports by number, also those that the pod they are of has names for.
func (o overlay) numbered(ports []networkingv1.NetworkPolicyPort, pod map[string]string) []networkingv1.NetworkPolicyPort {
	ports = slices.Clone(ports)
	for i, p := range ports {
		for _, w := range o.workloads() {
			for _, named := range w.pod.Spec.Containers[0].Ports {
				if maps.Equal(w.pod.Labels, pod) && *p.Port == intstr.FromString(named.Name) {
					number := intstr.FromInt32(named.ContainerPort)
					ports[i].Port = &number
				}
			}
		}
	}
	return ports
}

func admits(t *testing.T, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort, pod map[string]string, port int) bool {
	t.Helper()
	return (len(peers) == 0 || slices.ContainsFunc(peers, func(p networkingv1.NetworkPolicyPeer) bool {
		return pod != nil && p.PodSelector != nil && p.NamespaceSelector == nil && selects(t, p.PodSelector, pod)
	})) && slices.ContainsFunc(ports, func(p networkingv1.NetworkPolicyPort) bool {
		return p.Port != nil && (p.Port.IntValue() == port || p.EndPort != nil && p.Port.IntValue() <= port && port <= int(*p.EndPort))
	})
}

func selects(t *testing.T, selector *metav1.LabelSelector, of map[string]string) bool {
	t.Helper()
	s, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		t.Fatal(err)
	}
	return s.Matches(labels.Set(of))
}

// What `make kube` makes is in no repository.
func TestManifests_TheRepositoryHasNoSecrets(t *testing.T) {
	tracked, err := exec.Command("git", "ls-files", folder).Output()
	if err != nil {
		t.Skipf("no repository: %v", err)
	}
	for file := range strings.Lines(string(tracked)) {
		file = strings.TrimSpace(file)
		text, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(text)
		if err := errors.Join(err, text.Close()); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(file, "/secrets/") || bytes.Contains(content, []byte("kind: Secret\n")) || bytes.Contains(content, []byte("PRIVATE KEY")) {
			t.Errorf("%s is or has a secret", file)
		}
	}
}
