"""The small programs that `robot-rl doctor` runs in processes of their own.

Each ends with one JSON object on its last line, or with what is wrong as an exception.
"""

TORCH = """
import json, torch
a = torch.randn(64, 64)
value = float((a @ a.T).trace())
gpus = []
for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
    b = torch.ones(8, 8, device=f"cuda:{i}")
    assert float((b @ b).sum()) == 512.0
    gpus.append(torch.cuda.get_device_name(i))
print(json.dumps({"version": torch.__version__, "threads": torch.get_num_threads(),
                  "finite": value == value, "cuda": torch.version.cuda, "gpus": gpus}))
"""

MUJOCO_SCENE = """
import json, mujoco
model = mujoco.MjModel.from_xml_string('''
<mujoco><worldbody><light pos="0 0 3"/><geom type="plane" size="1 1 .1" rgba=".8 .8 .8 1"/>
<body pos="0 0 .5"><freejoint/><geom type="box" size=".1 .1 .1" rgba="1 0 0 1"/></body>
</worldbody></mujoco>''')
data = mujoco.MjData(model)
"""

MUJOCO_STEP = (
    MUJOCO_SCENE
    + """
mujoco.mj_step(model, data, 50)
assert data.qpos[2] < 0.499, f"the box did not fall: height {data.qpos[2]} m"
print(json.dumps({"version": mujoco.__version__}))
"""
)

MUJOCO_RENDER = (
    MUJOCO_SCENE
    + """
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 48, 64) as renderer:
    renderer.update_scene(data)
    image = renderer.render()
    try:
        from OpenGL import GL
        by = GL.glGetString(GL.GL_RENDERER).decode()
    except Exception:
        by = ""
assert image.shape == (48, 64, 3) and image.std() > 1, "the picture is empty"
print(json.dumps({"renderer": by}), flush=True)
import os
os._exit(0)
"""
)

BULLET_STEP = """
import json, pybullet
from importlib.metadata import version
client = pybullet.connect(pybullet.DIRECT)
pybullet.setGravity(0, 0, -9.81)
shape = pybullet.createCollisionShape(pybullet.GEOM_BOX, halfExtents=[0.1, 0.1, 0.1])
box = pybullet.createMultiBody(1.0, shape, basePosition=[0, 0, 0.5])
for _ in range(24):
    pybullet.stepSimulation()
height = pybullet.getBasePositionAndOrientation(box)[0][2]
assert height < 0.499, f"the box did not fall: height {height} m"
print(json.dumps({"version": version("pybullet")}))
"""

BULLET_RENDER = """
import json, numpy, pybullet
pybullet.connect(pybullet.DIRECT)
shape = pybullet.createVisualShape(
    pybullet.GEOM_BOX, halfExtents=[0.2, 0.2, 0.2], rgbaColor=[1, 0, 0, 1])
pybullet.createMultiBody(0, baseVisualShapeIndex=shape)
view = pybullet.computeViewMatrix([1, 0, 1], [0, 0, 0], [0, 0, 1])
projection = pybullet.computeProjectionMatrixFOV(50, 1.0, 0.05, 10)
_, _, pixels, _, segments = pybullet.getCameraImage(
    48, 48, view, projection, renderer=pybullet.ER_TINY_RENDERER)
pixels = numpy.asarray(pixels).reshape(48, 48, 4)
assert pixels[..., :3].std() > 1, "the picture is empty"
print(json.dumps({"numpy": bool(pybullet.isNumpyEnabled())}))
"""

VIDEO = """
import io, json, av, numpy
fault = "no H.264 encoder in this build"
for codec in ("libx264", "libopenh264", "h264"):
    try:
        memory = io.BytesIO()
        with av.open(memory, "w", format="mp4") as out:
            stream = out.add_stream(codec, rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for i in range(8):
                picture = numpy.full((48, 64, 3), 30 * i, numpy.uint8)
                out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            out.mux(stream.encode())
        memory.seek(0)
        with av.open(memory) as back:
            frames = sum(1 for _ in back.decode(video=0))
        assert frames == 8, f"{frames} of 8 pictures came back"
        print(json.dumps({"version": av.__version__, "codec": codec}))
        break
    except Exception as error:
        fault = f"{codec}: {error}"
else:
    raise RuntimeError(fault)
"""

IMPORT = """
import importlib, json, sys
from importlib.metadata import PackageNotFoundError, version
module = importlib.import_module(sys.argv[1])
try:
    found = version(sys.argv[2])
except PackageNotFoundError:
    found = str(getattr(module, "__version__", ""))
print(json.dumps({"version": found}))
"""

PLOT = """
import io, json, matplotlib
matplotlib.use("Agg")
from matplotlib.figure import Figure
memory = io.BytesIO()
figure = Figure(figsize=(1, 1))
figure.subplots().plot([0, 1])
figure.savefig(memory, format="png")
assert memory.getvalue()[1:4] == b"PNG"
print(json.dumps({"version": matplotlib.__version__}))
"""

REALSENSE = """
import json, pyrealsense2
devices = [d.get_info(pyrealsense2.camera_info.name)
           for d in pyrealsense2.context().query_devices()]
print(json.dumps({"devices": devices}))
"""

ROS1 = """
import json
from importlib.metadata import PackageNotFoundError, version
from robot_rl.ros.ros1_import import import_rospy
import_rospy()
try:
    found = version("rospy")
except PackageNotFoundError:
    found = ""
print(json.dumps({"version": found}))
"""
