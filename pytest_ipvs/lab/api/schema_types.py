"""The fields of the API's types, as data: for ``schema``, which refuses or drops others.

One line of words per type: a field's name, and after a colon the type of its value, with ``[]``
for lists. A field without a type may hold anything. Names are those of the API's reference for
1.36; a test compares them with the official client's models.
"""

from __future__ import annotations

TYPES: dict[str, str] = {
    "ObjectMeta": (
        "annotations creationTimestamp deletionGracePeriodSeconds deletionTimestamp "
        "finalizers generateName generation labels managedFields name namespace "
        "ownerReferences:[]OwnerReference resourceVersion selfLink uid"
    ),
    "OwnerReference": "apiVersion blockOwnerDeletion controller kind name uid",
    "Pod": "apiVersion kind metadata:ObjectMeta spec:PodSpec status",
    "PodSpec": (
        "activeDeadlineSeconds affinity automountServiceAccountToken containers:[]Container "
        "dnsConfig:PodDNSConfig dnsPolicy enableServiceLinks ephemeralContainers "
        "evictionResponders hostAliases:[]HostAlias hostIPC hostNetwork hostPID hostUsers "
        "hostname hostnameOverride imagePullSecrets:[]LocalObjectReference "
        "initContainers:[]Container nodeName nodeSelector os overhead preemptionPolicy "
        "priority priorityClassName readinessGates resourceClaims "
        "resources:ResourceRequirements restartPolicy runtimeClassName schedulerName "
        "schedulingGates schedulingGroup securityContext:PodSecurityContext serviceAccount "
        "serviceAccountName setHostnameAsFQDN shareProcessNamespace subdomain "
        "terminationGracePeriodSeconds tolerations:[]Toleration topologySpreadConstraints "
        "volumes:[]Volume"
    ),
    "PodTemplateSpec": "metadata:ObjectMeta spec:PodSpec",
    "Container": (
        "args command env:[]EnvVar envFrom:[]EnvFromSource image imagePullPolicy "
        "lifecycle:Lifecycle livenessProbe:Probe name ports:[]ContainerPort "
        "readinessProbe:Probe resizePolicy resources:ResourceRequirements restartPolicy "
        "restartPolicyRules securityContext:SecurityContext startupProbe:Probe stdin "
        "stdinOnce terminationMessagePath terminationMessagePolicy tty volumeDevices "
        "volumeMounts:[]VolumeMount workingDir"
    ),
    "ContainerPort": "containerPort hostIP hostPort name protocol",
    "EnvVar": "name value valueFrom:EnvVarSource",
    "EnvVarSource": (
        "configMapKeyRef:ConfigMapKeySelector fieldRef:ObjectFieldSelector fileKeyRef "
        "resourceFieldRef secretKeyRef:SecretKeySelector"
    ),
    "ObjectFieldSelector": "apiVersion fieldPath",
    "SecretKeySelector": "key name optional",
    "ConfigMapKeySelector": "key name optional",
    "EnvFromSource": "configMapRef prefix secretRef",
    "Probe": (
        "exec:ExecAction failureThreshold grpc:GRPCAction httpGet:HTTPGetAction "
        "initialDelaySeconds periodSeconds successThreshold tcpSocket:TCPSocketAction "
        "terminationGracePeriodSeconds timeoutSeconds"
    ),
    "HTTPGetAction": "host httpHeaders:[]HTTPHeader path port protocol scheme",
    "HTTPHeader": "name value",
    "TCPSocketAction": "host port",
    "ExecAction": "command",
    "GRPCAction": "mode port service",
    "Lifecycle": "postStart:LifecycleHandler preStop:LifecycleHandler stopSignal",
    "LifecycleHandler": (
        "exec:ExecAction httpGet:HTTPGetAction sleep:SleepAction tcpSocket:TCPSocketAction"
    ),
    "SleepAction": "seconds",
    "ResourceRequirements": "claims limits requests",
    "SecurityContext": (
        "allowPrivilegeEscalation appArmorProfile capabilities privileged procMount "
        "readOnlyRootFilesystem runAsGroup runAsNonRoot runAsUser seLinuxOptions "
        "seccompProfile windowsOptions"
    ),
    "PodSecurityContext": (
        "appArmorProfile fsGroup fsGroupChangePolicy runAsGroup runAsNonRoot runAsUser "
        "seLinuxChangePolicy seLinuxOptions seccompProfile supplementalGroups "
        "supplementalGroupsPolicy sysctls windowsOptions"
    ),
    "Volume": (
        "awsElasticBlockStore azureDisk azureFile cephfs cinder "
        "configMap:ConfigMapVolumeSource csi downwardAPI emptyDir:EmptyDirVolumeSource "
        "ephemeral fc flexVolume flocker gcePersistentDisk gitRepo glusterfs "
        "hostPath:HostPathVolumeSource image iscsi name nfs persistentVolumeClaim "
        "photonPersistentDisk portworxVolume projected quobyte rbd scaleIO "
        "secret:SecretVolumeSource storageos vsphereVolume"
    ),
    "VolumeMount": (
        "bindMountOptions mountPath mountPropagation name readOnly recursiveReadOnly subPath "
        "subPathExpr"
    ),
    "KeyToPath": "key mode path user",
    "ConfigMapVolumeSource": "defaultMode defaultUser items:[]KeyToPath name optional",
    "SecretVolumeSource": "defaultMode defaultUser items:[]KeyToPath optional secretName",
    "EmptyDirVolumeSource": "medium mode sizeLimit",
    "HostPathVolumeSource": "path type",
    "Toleration": "effect key operator tolerationSeconds value",
    "PodDNSConfig": "nameservers options searches",
    "HostAlias": "hostnames ip",
    "LocalObjectReference": "name",
    "Deployment": "apiVersion kind metadata:ObjectMeta spec:DeploymentSpec status",
    "DeploymentSpec": (
        "minReadySeconds paused progressDeadlineSeconds replicas revisionHistoryLimit "
        "selector:LabelSelector strategy:DeploymentStrategy template:PodTemplateSpec"
    ),
    "DeploymentStrategy": "rollingUpdate:RollingUpdateDeployment type",
    "RollingUpdateDeployment": "maxSurge maxUnavailable",
    "LabelSelector": "matchExpressions:[]LabelSelectorRequirement matchLabels",
    "LabelSelectorRequirement": "key operator values",
    "ReplicaSet": "apiVersion kind metadata:ObjectMeta spec:ReplicaSetSpec status",
    "ReplicaSetSpec": "minReadySeconds replicas selector:LabelSelector template:PodTemplateSpec",
    "DaemonSet": "apiVersion kind metadata:ObjectMeta spec:DaemonSetSpec status",
    "DaemonSetSpec": (
        "minReadySeconds revisionHistoryLimit selector:LabelSelector template:PodTemplateSpec "
        "updateStrategy:DaemonSetUpdateStrategy"
    ),
    "DaemonSetUpdateStrategy": "rollingUpdate:RollingUpdateDaemonSet type",
    "RollingUpdateDaemonSet": "maxSurge maxUnavailable",
    "StatefulSet": "apiVersion kind metadata:ObjectMeta spec:StatefulSetSpec status",
    "StatefulSetSpec": (
        "minReadySeconds ordinals persistentVolumeClaimRetentionPolicy podManagementPolicy "
        "replicas revisionHistoryLimit selector:LabelSelector serviceName "
        "template:PodTemplateSpec updateStrategy volumeClaimTemplates"
    ),
    "Job": "apiVersion kind metadata:ObjectMeta spec:JobSpec status",
    "JobSpec": (
        "activeDeadlineSeconds backoffLimit backoffLimitPerIndex completionMode completions "
        "managedBy manualSelector maxFailedIndexes parallelism podFailurePolicy "
        "podReplacementPolicy scheduling selector:LabelSelector successPolicy suspend "
        "template:PodTemplateSpec ttlSecondsAfterFinished"
    ),
    "Service": "apiVersion kind metadata:ObjectMeta spec:ServiceSpec status",
    "ServiceSpec": (
        "allocateLoadBalancerNodePorts clusterIP clusterIPs externalIPs externalName "
        "externalTrafficPolicy healthCheckNodePort internalTrafficPolicy ipFamilies "
        "ipFamilyPolicy loadBalancerClass loadBalancerIP loadBalancerSourceRanges "
        "ports:[]ServicePort publishNotReadyAddresses selector sessionAffinity "
        "sessionAffinityConfig:SessionAffinityConfig trafficDistribution type"
    ),
    "ServicePort": "appProtocol name nodePort port protocol targetPort",
    "SessionAffinityConfig": "clientIP:ClientIPConfig",
    "ClientIPConfig": "timeoutSeconds",
    "ConfigMap": "apiVersion binaryData data immutable kind metadata:ObjectMeta",
    "Secret": "apiVersion data immutable kind metadata:ObjectMeta stringData type",
    "ServiceAccount": (
        "apiVersion automountServiceAccountToken imagePullSecrets:[]LocalObjectReference kind "
        "metadata:ObjectMeta secrets:[]ObjectReference"
    ),
    "Namespace": "apiVersion kind metadata:ObjectMeta spec:NamespaceSpec status",
    "NamespaceSpec": "finalizers",
    "Node": "apiVersion kind metadata:ObjectMeta spec:NodeSpec status",
    "NodeSpec": (
        "configSource externalID podCIDR podCIDRs podPreemptionPolicy providerID "
        "taints:[]Taint unschedulable"
    ),
    "Taint": "effect key timeAdded value",
    "Endpoints": "apiVersion kind metadata:ObjectMeta subsets:[]EndpointSubset",
    "EndpointSubset": (
        "addresses:[]EndpointAddress notReadyAddresses:[]EndpointAddress ports:[]EndpointPort"
    ),
    "EndpointAddress": "hostname ip nodeName targetRef:ObjectReference",
    "EndpointSlice": (
        "addressType apiVersion endpoints:[]Endpoint kind metadata:ObjectMeta "
        "ports:[]DiscoveryEndpointPort"
    ),
    "Endpoint": (
        "addresses conditions:EndpointConditions deprecatedTopology hints:EndpointHints "
        "hostname nodeName targetRef:ObjectReference zone topology"
    ),
    "EndpointConditions": "ready serving terminating",
    "EndpointHints": "forNodes forZones",
    "Lease": "apiVersion kind metadata:ObjectMeta spec:LeaseSpec",
    "LeaseSpec": (
        "acquireTime holderIdentity leaseDurationSeconds leaseTransitions preferredHolder "
        "renewTime strategy"
    ),
    "Role": "apiVersion kind metadata:ObjectMeta rules:[]PolicyRule",
    "ClusterRole": "aggregationRule apiVersion kind metadata:ObjectMeta rules:[]PolicyRule",
    "PolicyRule": "apiGroups nonResourceURLs resourceNames resources verbs",
    "RoleBinding": "apiVersion kind metadata:ObjectMeta roleRef:RoleRef subjects:[]Subject",
    "ClusterRoleBinding": (
        "apiVersion kind metadata:ObjectMeta roleRef:RoleRef subjects:[]Subject"
    ),
    "RoleRef": "apiGroup kind name",
    "ControllerRevision": "apiVersion data kind metadata:ObjectMeta revision",
    "ObjectReference": "apiVersion fieldPath kind name namespace resourceVersion uid",
    "Subject": "apiGroup kind name namespace",
    "Event": (
        "action apiVersion count eventTime firstTimestamp involvedObject:ObjectReference kind "
        "lastTimestamp message metadata:ObjectMeta reason related:ObjectReference "
        "reportingComponent reportingInstance series source type"
    ),
    "EndpointPort": "appProtocol name port protocol",
    "DiscoveryEndpointPort": "appProtocol name port protocol",
}
